//! As much of RFC 6455 as an echo needs: the handshake, a short masked text frame out, a text frame
//! in.

use crate::wire::Wire;
use std::net::SocketAddr;

/// An open WebSocket.
#[derive(Debug)]
pub struct WebSocket {
    wire: Wire,
}

impl WebSocket {
    /// Performs the handshake; returns the answer's head when it was refused.
    ///
    /// # Errors
    /// The head of an answer that is not 101.
    pub async fn connect(to: SocketAddr, path: &str) -> Result<Self, String> {
        let mut wire = Wire::connect(to).await;
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        wire.send(request).await.map_err(|err| err.to_string())?;
        let head = wire.head().await;
        // The accept value of RFC 6455's own example key.
        let accepted = head.starts_with("HTTP/1.1 101")
            && head.to_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=");
        if accepted { Ok(Self { wire }) } else { Err(head) }
    }

    /// Sends a text of less than 126 bytes.
    ///
    /// # Panics
    /// When the peer is gone.
    pub async fn send(&mut self, text: &str) {
        let mask = [0x12, 0x34, 0x56, 0x78];
        let length = u8::try_from(text.len()).expect("a short text");
        let mut frame = vec![0x81, 0x80 | length];
        frame.extend(mask);
        frame.extend(text.bytes().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.wire.send(frame).await.unwrap();
    }

    /// The next text of less than 126 bytes.
    ///
    /// # Panics
    /// When something else arrives.
    pub async fn text(&mut self) -> String {
        let head = self.wire.exactly(2).await;
        assert_eq!(head[0], 0x81, "a whole text frame");
        assert!(head[1] < 126, "a short frame without a mask");
        String::from_utf8(self.wire.exactly(usize::from(head[1])).await).unwrap()
    }

    /// The connection below the frames.
    pub fn into_wire(self) -> Wire {
        self.wire
    }
}
