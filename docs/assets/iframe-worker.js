// A page opened from the disk may not start a worker, and the search is one: run its script in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.listeners = [];
      this.onmessage = null;
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentWindow;
      inside.postMessage = (data) => {
        const event = new MessageEvent("message", { data });
        for (const listener of this.listeners) listener(event);
        if (this.onmessage) this.onmessage(event);
      };
      inside.importScripts = (...sources) =>
        sources.reduce((before, source) => before.then(() => this.load(source)), Promise.resolve());
      this.inside = inside;
      this.url = new URL(url, location.href);
      this.load(this.url).then(() => { this.ready = true; this.waiting.splice(0).forEach((data) => this.send(data)); });
    }
    load(url) {
      return new Promise((done, failed) => {
        const script = this.inside.document.createElement("script");
        script.src = new URL(url, this.url);
        script.onload = done;
        script.onerror = failed;
        this.inside.document.body.append(script);
      });
    }
    send(data) { this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })); }
    postMessage(data) { if (this.ready) this.send(data); else this.waiting.push(data); }
    addEventListener(kind, listener) { if (kind === "message") this.listeners.push(listener); }
    removeEventListener(kind, listener) { this.listeners = this.listeners.filter((each) => each !== listener); }
    terminate() { this.frame.remove(); }
  };
}
