"""What the server takes as a video, and the processes that decode it.

`containers` tells a file's format by its bytes, `policy` says which are taken, `whole` whether all of the file is
there; `pool`, `process` and `child` decode it in a process of its own, `capture` gives that process the methods of
cv2.VideoCapture, and `session` is one video's way through it; `kinds` tells commands pictures from videos. Nothing
here imports vLLM or torch; the patches `server_damaged_videos` and `server_decoding_process` bring it to vLLM.
"""
