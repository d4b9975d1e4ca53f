//! How a process gets its ledger: two messages on an abstract SOCK_SEQPACKET socket.
//!
//! The target connects to the name in its environment, sends [`Hello`] and receives [`Welcome`] with the
//! memfd as ancillary data (SCM_RIGHTS). Both sides close the connection then. The token keeps strangers out:
//! abstract names can be listed by anybody.

/// The environment variable: `NAME:TOKEN`, the abstract socket's name and the token as 32 hex digits.
pub const ENV: &str = "LEAKSCOPE_CTL";

/// Version of these messages; both sides must agree.
pub const WIRE_VERSION: u32 = 1;

/// What a process says when it wants a ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Hello {
    /// [`WIRE_VERSION`].
    pub version: u32,
    /// A value of [`crate::layout::origin`].
    pub origin: u32,
    /// The secret of the environment variable.
    pub token: [u8; 16],
    /// Process id as the target sees it.
    pub pid: u32,
    /// Parent's process id as the target sees it.
    pub parent_pid: u32,
}

/// The answer; the memfd comes with it when `status` is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Welcome {
    /// [`WIRE_VERSION`].
    pub version: u32,
    /// 0: granted. 1: refused.
    pub status: u32,
    /// Bytes of the ledger file.
    pub file_bytes: u64,
}

impl Hello {
    /// Bytes of the message.
    pub const BYTES: usize = size_of::<Self>();

    /// The message as bytes.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[0..4].copy_from_slice(&self.version.to_le_bytes());
        out[4..8].copy_from_slice(&self.origin.to_le_bytes());
        out[8..24].copy_from_slice(&self.token);
        out[24..28].copy_from_slice(&self.pid.to_le_bytes());
        out[28..32].copy_from_slice(&self.parent_pid.to_le_bytes());
        out
    }

    /// The message in `bytes`; `None` when it has another length.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().ok()?;
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut token = [0; 16];
        token.copy_from_slice(&bytes[8..24]);
        Some(Self { version: word(0), origin: word(4), token, pid: word(24), parent_pid: word(28) })
    }
}

impl Welcome {
    /// Bytes of the message.
    pub const BYTES: usize = size_of::<Self>();

    /// The message as bytes.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[0..4].copy_from_slice(&self.version.to_le_bytes());
        out[4..8].copy_from_slice(&self.status.to_le_bytes());
        out[8..16].copy_from_slice(&self.file_bytes.to_le_bytes());
        out
    }

    /// The message in `bytes`; `None` when it has another length.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().ok()?;
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let file_bytes = u64::from(word(8)) | u64::from(word(12)) << 32;
        Some(Self { version: word(0), status: word(4), file_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_a_round_trip() {
        let hello = Hello { version: 1, origin: 2, token: *b"0123456789abcdef", pid: 77, parent_pid: 3 };
        assert_eq!(Hello::decode(&hello.encode()), Some(hello));
        assert_eq!(Hello::decode(&hello.encode()[1..]), None);
        let welcome = Welcome { version: 1, status: 0, file_bytes: 0x1_2345_6789 };
        assert_eq!(Welcome::decode(&welcome.encode()), Some(welcome));
        assert_eq!(Welcome::decode(&[]), None);
    }
}
