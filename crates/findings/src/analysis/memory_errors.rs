//! Memory errors that another tool found: named, and held against the rules.

use std::sync::Arc;

use leakscope_model::ErrorKind;

use super::stacks::{Stack, Stacks};
use super::{Amount, Uses};
use crate::fingerprint::Fingerprint;
use crate::recording::{Access, ProcessRecording};
use crate::suppressions::{Error, Matcher, RuleId};

/// A memory error that is not a wrong call to the allocator.
#[derive(Clone, Debug)]
pub struct MemoryError {
    /// What was wrong, in Memcheck's terms.
    pub kind: ErrorKind,
    /// How memory was accessed.
    pub access: Access,
    /// Bytes of the access, 0 when unknown.
    pub access_bytes: u64,
    /// The address concerned, 0 when unknown.
    pub address: u64,
    /// What the tool said of it, one line.
    pub message: Arc<str>,
    /// Where. The first frame is the code itself: there is no allocation function in front.
    pub stack: Stack,
    /// What the tool said besides, with a stack or alone.
    pub auxiliary: Vec<(Arc<str>, Option<Stack>)>,
    /// How often.
    pub count: u64,
    /// Number of the thread.
    pub thread: u32,
    /// Its kernel thread id, 0 when unknown.
    pub tid: u32,
    /// Identity across builds, machines and tools.
    pub fingerprint: Fingerprint,
    /// The rule that hides it.
    pub suppressed_by: Option<RuleId>,
}

pub(super) fn errors(
    recorded: &ProcessRecording,
    stacks: &Stacks<'_>,
    matcher: &mut Matcher<'_>,
    uses: &mut Uses,
) -> Vec<MemoryError> {
    let name = |error: &crate::recording::MemoryError| {
        let stack = stacks.bare(error.leaf);
        let asked = Error::Memory { kind: error.kind, bytes: error.access_bytes, message: error.message.clone() };
        let suppressed_by = matcher.find(&asked, stack.all_frames());
        if let Some(rule) = suppressed_by {
            uses.hit(rule, error.count, Amount::default());
            uses.suppressed_error(error.count);
        }
        MemoryError {
            kind: error.kind,
            access: error.access,
            access_bytes: error.access_bytes,
            address: error.address,
            message: error.message.as_str().into(),
            auxiliary: error
                .auxiliary
                .iter()
                .map(|other| (other.label.as_str().into(), (other.leaf != 0).then(|| stacks.auxiliary(other.leaf))))
                .collect(),
            count: error.count,
            thread: error.thread,
            tid: recorded.threads.get(error.thread as usize).map_or(0, |thread| thread.tid),
            fingerprint: stacks.memory_fingerprint(error.kind, error.leaf),
            suppressed_by,
            stack,
        }
    };
    recorded.memory_errors.iter().map(name).collect()
}
