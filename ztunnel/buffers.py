"""The worker's buffers: one of each, as nothing here runs at the same time. Allocating per read was 17 % of a bulk transfer."""

from ztunnel.frames import HEADER_BYTES, SEND_FRAME_BYTES

IO_BYTES = 256 << 10

frame = bytearray(HEADER_BYTES + SEND_FRAME_BYTES)
"""A frame header and the payload behind it, read in place."""
frame_view = memoryview(frame)
payload_view = frame_view[HEADER_BYTES:]
cipher_view = memoryview(bytearray(IO_BYTES))
"""What one receive call brings from a tunnel's socket."""
plain_view = memoryview(bytearray(IO_BYTES))
"""What TLS makes of it. Not shared with `frame`: a window that reopens may start senders before it is used up."""
