//! Numbers that look like chance and are the same each time.

/// Marsaglia's xorshift with 64 bits of state.
pub fn xorshift() -> impl FnMut() -> u64 {
    let mut state = 88_172_645_463_325_252u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}
