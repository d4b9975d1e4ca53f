//! The header's numbers: where they are and who writes them.

/// `leaksmc1`
pub const MAGIC: u64 = u64::from_le_bytes(*b"leaksmc1");

/// Version of this format; both sides must agree.
pub const VERSION: u64 = 3;

/// Bytes of the file: room for events of a long life, in memory only as far as it is written.
pub const FILE_BYTES: u64 = 1 << 32;

/// Bytes of the file where limits leave no room for the other.
pub const SMALL_FILE_BYTES: u64 = 1 << 24;

/// Where the options are.
pub const CONFIG_OFFSET: u64 = 256;

/// Room for them, with the zero behind.
pub const CONFIG_BYTES: u64 = EVENTS_OFFSET - CONFIG_OFFSET;

/// Where the events begin.
pub const EVENTS_OFFSET: u64 = 4096;

/// How many fields there are.
pub const HEADER_FIELDS: usize = 12;

/// A number of 8 bytes in the header; its offset is 8 times its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Field {
    /// [`MAGIC`]; by the outside.
    Magic,
    /// [`VERSION`]; by the outside.
    Version,
    /// Bytes of the file; by the outside.
    FileBytes,
    /// A value of [`crate::layout::origin`]; by the outside.
    Origin,
    /// End of the events that may be read; by the engine.
    Published,
    /// End of the events that have been read and printed; by the outside.
    Taken,
    /// Errors that were shown; by the outside, before `Taken`.
    Shown,
    /// Errors that rules hid; by the outside, before `Taken`.
    Hidden,
    /// A value of [`state`]; by the engine.
    State,
    /// Events that did not fit; by the engine.
    Lost,
    /// Processes that this one has made, or is about to make; by the engine.
    Forks,
    /// Of these, those that have connected, or never will; by their engines.
    Arrived,
}

/// How far the engine came.
pub mod state {
    /// It has not begun.
    pub const NEW: u64 = 0;
    /// The target runs.
    pub const RUNNING: u64 = 1;
    /// The target has ended.
    pub const ENDED: u64 = 2;
}
