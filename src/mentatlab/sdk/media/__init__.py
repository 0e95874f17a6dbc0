"""What media agents share: typed faces of Pillow, PyAV, onnxruntime, Whisper (extra `agents`)."""
