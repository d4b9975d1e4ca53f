//! Where everything lies: fixed addresses below 2 GB, so that translated code reaches state, tables and the target's
//! code with 32-bit displacements.

/// Where the engine's executable is to be linked (`--image-base`); anywhere works, this is out of the target's way.
pub const ENGINE_BASE: u64 = 0x3000_0000;

/// Addresses of the target end here; what lies above is shadow.
pub const GUEST_END: u64 = 0x3000_0000_0000;

/// The V shadow of the byte at `a` is the byte at `a + SHADOW_OFFSET`; GS base while the cache runs.
///
/// The low bits are not zero on purpose: the first-level cache of AMD's processors predicts its way from address bits 12
/// to 27, so that a byte and its shadow with the same bits there push each other out (measured: bzip2 at 2.4 times native
/// instead of 1.4).
pub const SHADOW_OFFSET: u64 = 0x3000_0812_5000;

/// Target code below this address runs fastest: its addresses are immediate operands.
pub const FAST_CODE_END: u64 = 0x8000_0000;

/// The running thread's state, [`crate::Guest`] first.
pub const STATE: u64 = 0x2000_0000;

/// How many bytes are mapped at [`STATE`].
pub const STATE_BYTES: usize = 0x1_0000;

/// Tables of indirect branches: one for jumps and calls, then one for returns, for each version of blocks.
pub const TABLES: u64 = 0x2001_0000;

/// Entries of one table; the low bits of a target's address are its index.
pub const TABLE_ENTRIES: usize = 0x1_0000;

/// How many bytes are mapped at [`TABLES`].
pub const TABLES_BYTES: usize = 4 * 8 * TABLE_ENTRIES;

/// The table of returns.
pub const RETURNS: u64 = TABLES + 8 * TABLE_ENTRIES as u64;

/// Pseudo-addresses for [`crate::Engine::hook`] and [`crate::Engine::hook_light`]: nothing is ever mapped here, a jump to
/// a registered one enters the tool.
pub const PSEUDO: std::ops::Range<u64> = 0x2800_0000..0x2900_0000;

/// Translated code: the paths that are taken.
pub const HOT: u64 = 0x1000_0000;

/// Translated code: what happens on a failed check, and jumps whose target is not translated yet.
pub const COLD: u64 = 0x1800_0000;

/// End of translated code.
pub const COLD_END: u64 = 0x2000_0000;

/// The largest cache.
pub const CACHE_BYTES_MAX: usize = (COLD_END - HOT) as usize;
