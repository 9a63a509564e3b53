"""The APIs: parse a request, select its policy, describe each endpoint's format."""
