//! What another tool saw: who it was, and the memory errors that only a checker of every access finds.

use leakscope_model::{ErrorKind, Tool};
use serde::{Deserialize, Serialize};

use super::codes;

/// Who recorded a process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Witness {
    /// The tool.
    #[serde(with = "codes::tool")]
    pub tool: Tool,
    /// Its version; empty when unknown. Of our own tool it stands in the recording.
    pub version: String,
}

impl Default for Witness {
    fn default() -> Self {
        Self { tool: Tool::Leakscope, version: String::new() }
    }
}

impl std::fmt::Display for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.tool.name())?;
        if self.version.is_empty() { Ok(()) } else { write!(f, " {}", self.version) }
    }
}

/// How memory was accessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Unknown, or there was no access.
    #[default]
    None,
    /// It was read.
    Read,
    /// It was written.
    Write,
}

/// A memory error that is not a wrong call to the allocator (that is a [`super::Misuse`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryError {
    /// What was wrong, in Memcheck's terms.
    #[serde(with = "codes::error_kind")]
    pub kind: ErrorKind,
    /// How memory was accessed.
    pub access: Access,
    /// Bytes of the access, 0 when unknown.
    pub access_bytes: u64,
    /// The address concerned, 0 when unknown.
    pub address: u64,
    /// What the tool said of it, one line.
    pub message: String,
    /// The innermost node of its stack, 0 when there is none.
    pub leaf: u32,
    /// Other stacks that belong to it, in the tool's order.
    pub auxiliary: Vec<AuxiliaryStack>,
    /// How often it happened.
    pub count: u64,
    /// Number of the thread.
    pub thread: u32,
}

/// A stack that explains an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuxiliaryStack {
    /// What it is, such as `Block was alloc'd at`.
    pub label: String,
    /// The innermost node, 0 when the label stands alone.
    pub leaf: u32,
}
