"""`eggroll report`: one page of one or several runs."""

from eggroll.runs.report.command import Extra as Extra
from eggroll.runs.report.command import ReportConfig as ReportConfig
from eggroll.runs.report.command import report as report
