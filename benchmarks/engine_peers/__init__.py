"""The engine beside Prefect, Ray Serve, Dagster, Temporal, Pipecat and Jina."""
