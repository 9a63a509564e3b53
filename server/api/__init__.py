"""The request side: parse a request, select its policy, describe each endpoint."""
