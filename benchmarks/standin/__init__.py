"""A stand-in for vLLM: its wire format at any speed, and its faults on demand.

    python -m benchmarks.standin --port 8200 --rate 30

What it says is made up; how it says it was copied byte for byte from vLLM 0.32 with the qwen3
reasoning parser. A request chooses its own scenario with a field that vLLM would ignore:

    {"model": "standin", "messages": […], "stream": true,
     "standin": {"tokens": 2000, "rate": 30, "cues": [100, 200], "die_after": 150}}

`scenario.py` lists the fields. Besides vLLM's paths there are:

    GET    /standin/stats      what was started, finished, aborted by the peer, is active now
    DELETE /standin/stats      begin counting again, forget the requests
    GET    /standin/requests   the latest requests, with headers and body
    PUT    /standin/scenario   the scenario of requests that bring none of their own
"""
