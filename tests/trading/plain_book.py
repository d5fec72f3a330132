"""A limit order book in plain Python, written to be obviously right; the oracle for `eggroll.trading.book`."""

from eggroll.trading.messages import CANCEL, DELETE, EXECUTE, LIMIT, MARKET

NO_ASK = (9_999_999_999, 0)
NO_BID = (-9_999_999_999, 0)


class PlainBook:
    """Two sides of orders `[order_id, price, size]`, each in priority order: better price first, then earlier first."""

    def __init__(self, capacity=None):
        self.capacity = capacity  # orders of a side; None: no limit
        self.bids = []
        self.asks = []
        self.dropped = 0  # orders that a full side had no room for
        self.unmatched = 0  # cancellations, deletions and executions that found no order

    @classmethod
    def of_levels(cls, row, capacity=None):
        """A book with one anonymous order a level of `row`, which is like a row of `levels`."""
        book = cls(capacity)
        for ask, ask_size, bid, bid_size in row:
            if ask_size > 0:
                book.asks.append([0, int(ask), int(ask_size)])
            if bid_size > 0:
                book.bids.append([0, int(bid), int(bid_size)])
        return book

    def apply(self, kind, order_id, size, price, direction):
        """Apply one message; returns (shares traded, Σ shares · price) of an incoming order, else (0, 0)."""
        if kind == LIMIT:
            quantity, value = self._match(size, price, direction)
            if size - quantity > 0:
                self._join(order_id, size - quantity, price, direction)
            return quantity, value
        if kind == MARKET:
            no_limit = float("inf") if direction == 1 else float("-inf")
            return self._match(size, no_limit if price == 0 else price, direction)
        if kind in (CANCEL, DELETE, EXECUTE):
            self._remove(kind, order_id, size, price, direction)
        return 0, 0

    def levels(self, n):
        """n tuples (ask price, ask size, bid price, bid size), sizes summed over all orders at the price."""
        asks, bids = self._levels_of(self.asks), self._levels_of(self.bids)
        asks += [NO_ASK] * (n - len(asks))
        bids += [NO_BID] * (n - len(bids))
        return [(*asks[i], *bids[i]) for i in range(n)]

    def _side(self, direction):
        return self.bids if direction == 1 else self.asks

    def _match(self, size, limit, direction):
        other = self._side(-direction)
        quantity = value = 0
        while other and quantity < size:
            best = other[0]
            acceptable = best[1] <= limit if direction == 1 else best[1] >= limit
            if not acceptable:
                break
            fill = min(size - quantity, best[2])
            best[2] -= fill
            quantity += fill
            value += fill * best[1]
            if best[2] == 0:
                other.pop(0)
        return quantity, value

    def _join(self, order_id, size, price, direction):
        own = self._side(direction)
        place = 0
        while place < len(own) and (own[place][1] >= price if direction == 1 else own[place][1] <= price):
            place += 1
        own.insert(place, [order_id, price, size])
        if self.capacity is not None and len(own) > self.capacity:
            own.pop()
            self.dropped += 1

    def _remove(self, kind, order_id, size, price, direction):
        own = self._side(direction)
        by_name = [order for order in own if order_id != 0 and order[0] == order_id]
        by_price = [order for order in own if order[1] == price and (order_id == 0 or order[0] == 0)]
        if not by_name and not by_price:
            self.unmatched += 1
            return
        order = by_name[0] if by_name else by_price[0]
        if kind == DELETE and by_name:
            order[2] = 0
        else:
            order[2] -= min(max(size, 0), order[2])
        if order[2] == 0:
            own[:] = [other for other in own if other is not order]

    @staticmethod
    def _levels_of(orders):
        sizes = {}  # keeps the order in which prices come, which is that of priority
        for _, price, size in orders:
            sizes[price] = sizes.get(price, 0) + size
        return list(sizes.items())
