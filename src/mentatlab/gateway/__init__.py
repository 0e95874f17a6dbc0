"""HTTP words only: routes, WebSocket, SSE, who gets in. Decode, one call of a room, encode."""
