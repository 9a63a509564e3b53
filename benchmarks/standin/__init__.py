"""A stand-in for vLLM: its wire format at any speed, and its faults on demand.

    python -m benchmarks.standin --port 8200 --rate 30

The generated text is made up; the bytes around it are those of vLLM 0.32 with the qwen3 reasoning
parser. A request chooses its own scenario with a field that vLLM would ignore:

    {"model": "standin", "messages": […], "stream": true,
     "standin": {"tokens": 2000, "rate": 30, "cues": [100, 200], "die_after": 150}}

`scenario.py` lists the fields. In addition to vLLM's paths it serves:

    GET    /standin/stats      counts of requests started, finished, aborted by the client, active
    DELETE /standin/stats      reset the counts, forget the requests
    GET    /standin/requests   the latest requests, with headers and body
    PUT    /standin/scenario   the default scenario of requests without a `standin` field
"""
