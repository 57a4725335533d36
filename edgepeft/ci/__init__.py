"""What a CI service shows of a report: summaries, annotations, one comment on a pull request."""
