//! Keeps the shadow of the stack while the stack pointer moves: below `rsp - 128` nothing may be touched.

use crate::decode::Step;
use crate::translate::Translator;

impl Translator {
    /// Writes what marks the stack that the instruction takes or gives back. Says whether it gives stack back.
    pub(crate) fn write_stack_marking(&mut self, _step: &Step, _flags_live: bool) -> bool {
        false
    }
}
