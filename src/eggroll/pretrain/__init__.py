"""Pretraining of the byte model in pure int8: corpora, lanes, validation, the job, and sampling."""
