//! The encoding of shadow memory, and operations on ranges of it.
//!
//! Every byte of the target has one byte of V shadow at a fixed distance, which the translator chooses. What it says:
//!
//! | value | meaning |
//! |---|---|
//! | [`ADDRESSABLE`] (0) | the target may read and write the byte |
//! | [`UNADDRESSABLE`] (0xFF) | it may not: a redzone, freed memory, stack below the stack pointer |
//!
//! A checker of definedness gives each bit of the shadow byte to one bit of the byte: 1 is undefined. Then 0xFF means
//! "not addressable, or nothing in it is defined", and code that comes upon it has to ask somebody else which of the two
//! it is. Zero stays what it is: everything is well. Whether an address that is 0xFF lies in a block's redzone or in
//! a freed block, the heap's own tables tell: there is no second map for it.
//!
//! Shadow memory that nobody has written to is zero: memory that the target has not mapped counts as addressable here,
//! and the processor finds the access.
//!
//! No allocation, no I/O, no panic; any thread.
#![cfg_attr(not(test), no_std)]

mod range;

pub use range::Shadow;

/// The target may use the byte.
pub const ADDRESSABLE: u8 = 0;

/// The target may not use the byte.
pub const UNADDRESSABLE: u8 = 0xFF;
