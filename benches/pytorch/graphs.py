"""Calls as CUDA graphs."""

import torch


def capture(call):
    """The call as a CUDA graph, run once before."""
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

    replay.inputs = call  # stay where the graph reads them
    return replay
