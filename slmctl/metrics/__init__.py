"""Metrics of answers, with intervals, tests and gates."""

TFIDF_LOGISTIC = "tfidf_logistic"  # names the linear model in reports and gates
