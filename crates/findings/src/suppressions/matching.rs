//! Patterns against frames and names, in time proportional to the product of the two lengths.

use std::borrow::{Borrow, Cow};

use super::FramePattern;
use crate::analysis::Frame;
use crate::fingerprint::normalise;

/// Whether the innermost frames match the whole pattern.
///
/// A set of positions in the pattern runs along the frames: position i is in it when the frames so far match the
/// lines before line i. Rules are matched with every loss record, so a set is a machine word where that is enough.
pub(super) fn stack_matches(pattern: &[FramePattern], frames: &[impl Borrow<Frame>]) -> bool {
    if pattern.len() < u64::BITS as usize { run(pattern, frames, 0_u64) } else { run(pattern, frames, Vec::new()) }
}

/// A set of positions, empty at first.
trait Positions: Clone {
    fn has(&self, position: usize) -> bool;
    fn add(&mut self, position: usize);
}

impl Positions for u64 {
    fn has(&self, position: usize) -> bool {
        *self >> position & 1 != 0
    }

    fn add(&mut self, position: usize) {
        *self |= 1 << position;
    }
}

impl Positions for Vec<usize> {
    fn has(&self, position: usize) -> bool {
        self.contains(&position)
    }

    fn add(&mut self, position: usize) {
        if !self.has(position) {
            self.push(position);
        }
    }
}

fn run<P: Positions>(pattern: &[FramePattern], frames: &[impl Borrow<Frame>], empty: P) -> bool {
    let mut possible = empty.clone();
    enter(pattern, &mut possible, 0);
    for frame in frames {
        if possible.has(pattern.len()) {
            return true;
        }
        let mut next = empty.clone();
        let mut any = false;
        for (i, line) in pattern.iter().enumerate() {
            if !possible.has(i) {
                continue;
            }
            if *line == FramePattern::AnyFrames {
                enter(pattern, &mut next, i);
                any = true;
            } else if frame_matches(line, frame.borrow()) {
                enter(pattern, &mut next, i + 1);
                any = true;
            }
        }
        if !any {
            return false;
        }
        possible = next;
    }
    possible.has(pattern.len())
}

/// Adds a position, and those after it that `...` lines open: they also stand for no frame at all.
fn enter<P: Positions>(pattern: &[FramePattern], positions: &mut P, mut position: usize) {
    positions.add(position);
    while pattern.get(position) == Some(&FramePattern::AnyFrames) {
        position += 1;
        positions.add(position);
    }
}

/// What an unknown name is compared as.
pub(super) const UNKNOWN: &str = "???";
/// Where Memcheck's own hooks are, on Debian: rules written for it name this object for the allocation function.
const MEMCHECKS_HOOKS: &str = "/usr/libexec/valgrind/vgpreload_memcheck-amd64-linux.so";

/// The object of functions that the simulated CPU stands in for.
const ENGINE: &str = "leakscope";

pub(super) fn frame_matches(pattern: &FramePattern, frame: &Frame) -> bool {
    match pattern {
        FramePattern::AnyFrames => true,
        FramePattern::Function(pattern) => {
            let function = frame.function.as_deref().unwrap_or(UNKNOWN);
            let linkage = frame.linkage_name.as_deref().unwrap_or(function);
            wildcard(pattern, linkage) || (linkage != function && wildcard(pattern, function))
                // Debug information gives inlined functions by their plain name, which is what Valgrind compares.
                || (frame.inlined && function.contains(literal_front(pattern)) && wildcard(pattern, &plain_name(function)))
        }
        FramePattern::Object(pattern) => {
            // A function that an engine stood in for is shown where the program has it, and is in the engine all the same.
            let object = if frame.hook && frame.object.contains('/') { ENGINE } else { &frame.object };
            wildcard(pattern, if object.is_empty() { UNKNOWN } else { object })
                || (frame.hook && wildcard(pattern, MEMCHECKS_HOOKS))
        }
        FramePattern::Path(pattern) => source_path(frame).is_some_and(|path| wildcard(pattern, &path)),
        FramePattern::Source { file, line } => {
            frame.file.as_deref().is_some_and(|name| wildcard(file, name)) && line.is_none_or(|line| line == frame.line)
        }
    }
}

/// Directory and file of a frame.
pub(super) fn source_path(frame: &Frame) -> Option<Cow<'_, str>> {
    let file = frame.file.as_deref()?;
    Some(match frame.directory.as_deref() {
        Some(directory) if !directory.is_empty() && !file.starts_with('/') => format!("{directory}/{file}").into(),
        _ => file.into(),
    })
}

/// What a pattern begins with, up to its first wildcard: a cheap test before a name is taken apart.
fn literal_front(pattern: &str) -> &str {
    pattern.split(['*', '?']).next().unwrap_or_default()
}

/// `f` of `n::C<int>::f<char>(int) const`.
pub(super) fn plain_name(function: &str) -> String {
    let name = normalise(function);
    let bytes = name.as_bytes();
    let (mut depth, mut end) = (0_usize, bytes.len());
    for at in (0..bytes.len()).rev() {
        match bytes[at] {
            b'>' | b')' => depth += 1,
            b'<' | b'(' => {
                depth = depth.saturating_sub(1);
                // Template arguments at the end are no part of the name.
                if depth == 0 && bytes[at] == b'<' && bytes[end - 1] == b'>' && at > 0 {
                    end = at;
                }
            }
            b':' if depth == 0 => return name[at + 1..end].to_owned(),
            _ => {}
        }
    }
    name[..end].to_owned()
}

/// `*` stands for any bytes, `?` for any one byte.
pub(crate) fn wildcard(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on when a later part does not match: after the last `*`, one byte further on.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, t));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match retry {
                Some((after_star, start)) => {
                    retry = Some((after_star, start + 1));
                    p = after_star;
                    t = start + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::plain_name;

    #[test]
    fn plain_names() {
        let table = [
            ("f", "f"),
            ("n::C<int>::get(int) const", "get"),
            ("void n::f<std::pair<int, char> >(int)", "f"),
            ("std::vector<int, std::allocator<int> >::push_back(int&&)", "push_back"),
            ("n::(anonymous namespace)::f(int)", "f"),
            ("<T as Trait>::run", "run"),
            ("operator<", "operator<"),
            ("", ""),
            (">", ">"),
            ("<", "<"),
        ];
        for (name, expected) in table {
            assert_eq!(plain_name(name), expected, "{name}");
        }
    }
}
