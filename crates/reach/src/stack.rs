//! Which blocks are still to be scanned: the mark stack, and the pending marks behind it.
//!
//! Every block to be scanned has its pending mark. The stack only says which comes next, so that a short one loses
//! nothing: [`next_pending`] finds what did not fit.

use crate::marked::mark_byte;

/// The mark stack. Blocks that do not fit are only marked as pending, as those on the stack are too.
pub(crate) struct Stack<'a> {
    pub(crate) entries: &'a mut [u32],
    pub(crate) top: usize,
    /// How many entries to use.
    pub(crate) limit: usize,
    /// Whether there are pending blocks that are not on the stack.
    pub(crate) has_spilled: bool,
}

impl Stack<'_> {
    #[inline]
    pub(crate) fn push(&mut self, block: u32) {
        match self.entries.get_mut(self.top) {
            Some(entry) if self.top < self.limit => {
                *entry = block;
                self.top += 1;
            }
            _ => self.has_spilled = true,
        }
    }

    /// The entry `depth` below the top.
    #[inline]
    pub(crate) fn peek(&self, depth: usize) -> usize {
        self.top.checked_sub(depth + 1).and_then(|at| self.entries.get(at)).map_or(0, |b| *b as usize)
    }

    /// Takes pending blocks from the marks, as many as fit. The stack is empty.
    pub(crate) fn refill(&mut self, marks: &[u8]) {
        self.has_spilled = false;
        let mut from = 0;
        while let Some(block) = next_pending(marks, from)
            && !self.has_spilled
        {
            self.push(block as u32);
            from = block + 1;
        }
    }

    pub(crate) fn clear(&mut self, limit: usize) {
        (self.top, self.limit, self.has_spilled) = (0, limit.min(self.entries.len()), false);
    }
}

/// The first pending block from `from` on.
#[inline]
pub(crate) fn next_pending(marks: &[u8], from: usize) -> Option<usize> {
    let is_pending = |m: &u8| m & mark_byte::PENDING != 0;
    let mut rest = marks.get(from..)?;
    // Long stretches without one are skipped in steps that the compiler turns into vector instructions.
    while let Some((step, behind)) = rest.split_first_chunk::<32>() {
        if step.iter().fold(0, |all, m| all | m) & mark_byte::PENDING != 0 {
            break;
        }
        rest = behind;
    }
    rest.iter().position(is_pending).map(|at| marks.len() - rest.len() + at)
}
