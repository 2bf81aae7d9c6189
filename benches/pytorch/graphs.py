"""Captures calls as CUDA graphs."""

import torch


def capture(call):
    """Captures the call as a CUDA graph, after running it once."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()

    def replay():
        graph.replay()

    replay.inputs = call  # keeps the inputs alive where the graph reads them
    return replay
