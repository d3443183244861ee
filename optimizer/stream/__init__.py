"""The event stream: the log, its codec, admission, attribution and the reward joiner."""
