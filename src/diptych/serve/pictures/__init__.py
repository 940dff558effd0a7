"""Pictures that come in requests, and those that go out."""
