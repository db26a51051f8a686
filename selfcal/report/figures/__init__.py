"""One module per family of figures; each returns :class:`selfcal.report.style.ReportFigure`."""
