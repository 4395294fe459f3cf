"""Server: connections, calls, and the pipeline that each of them takes."""
