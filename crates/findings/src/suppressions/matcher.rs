//! All rules against very many stacks.
//!
//! A compiler run has 100,000 loss records over a tenth as many frames, and a suppression file has hundreds of rules.
//! So each distinct line of a rule meets each distinct name once, and the stacks then run through all rules together:
//!
//! ```text
//! positions   rule 0: malloc | ... | fun:f | end    rule 1: obj:*libg* | end         one bit each
//! state       bit p: the frames so far match the lines before line p of its rule
//! step        lines of this frame & state, moved on by one; `...` also stays; entering `...` enters what follows it
//! ```
//!
//! The lines that a frame matches are the union of those that its function, its object and its place in the source
//! match, and these three are remembered by name. It gives what [`super::Suppressions::find`] gives, which tries rule
//! after rule and is the model in the tests.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use leakscope_model::LeakKind;

use super::matching::frame_matches;
use super::{Error, FramePattern, RuleId, Suppressions};
use crate::analysis::Frame;

/// Bits by position.
type Mask = Vec<u64>;
/// Numbers by addresses, with the owners of what lies there.
type Known<Address, Owner> = HashMap<Address, (usize, Owner), RandomState>;
/// An address stands for a name as long as its owner lives, so owners are kept.
type Name = (usize, Option<Arc<str>>);

fn name(text: Option<&Arc<str>>) -> Name {
    (text.map_or(0, |text| text.as_ptr() as usize), text.cloned())
}

/// The rules, and what names match.
pub struct Matcher<'a> {
    suppressions: &'a Suppressions,
    words: usize,
    /// Positions of the distinct lines, by what of a frame they look at.
    functions: Lines<'a>,
    objects: Lines<'a>,
    sources: Lines<'a>,
    /// Positions of `...`.
    dots: Mask,
    /// First positions of each rule, those behind a leading `...` included; and one past its last line.
    starts: Vec<Vec<usize>>,
    ends: Vec<usize>,
    end_mask: Vec<u64>,
    /// By leak kind: where its rules begin. `None` when it has none.
    leak_starts: [Option<Mask>; LeakKind::ALL.len()],
    /// Distinct masks, and their numbers.
    masks: Vec<Mask>,
    numbers: HashMap<Mask, usize, RandomState>,
    by_function: Known<(usize, usize, bool), [Name; 2]>,
    by_object: Known<(usize, bool), Name>,
    by_source: Known<(usize, usize, u32), [Name; 2]>,
    /// Unions of three masks, one behind the other, and their numbers.
    unions: Mask,
    known_unions: HashMap<[usize; 3], usize, RandomState>,
    /// The number of the union without lines; equal masks have one number, so there is one at most.
    empty_union: Option<usize>,
    by_frame: Known<usize, Arc<Frame>>,
    /// Frames have no names yet: each may turn out to match any line that asks for one.
    nameless: bool,
    state: Vec<u64>,
    next: Vec<u64>,
}

/// Distinct lines and where they stand.
#[derive(Default)]
struct Lines<'a> {
    numbers: HashMap<LineKey<'a>, usize>,
    lines: Vec<(&'a FramePattern, Vec<usize>)>,
}

#[derive(PartialEq, Eq, Hash)]
struct LineKey<'a>(&'a str, Option<u32>);

impl<'a> Lines<'a> {
    fn add(&mut self, key: LineKey<'a>, pattern: &'a FramePattern, position: usize) {
        let next = self.lines.len();
        let number = *self.numbers.entry(key).or_insert(next);
        if number == next {
            self.lines.push((pattern, Vec::new()));
        }
        self.lines[number].1.push(position);
    }

    /// The positions of lines that the frame matches, or of `all` lines.
    fn mask(&self, words: usize, frame: &Frame, all: bool) -> Vec<u64> {
        let mut mask = vec![0; words];
        for (pattern, positions) in &self.lines {
            if all || frame_matches(pattern, frame) {
                positions.iter().for_each(|&position| set(&mut mask, position));
            }
        }
        mask
    }
}

fn mask_of(words: usize, positions: &[usize]) -> Vec<u64> {
    let mut mask = vec![0; words];
    positions.iter().for_each(|&position| set(&mut mask, position));
    mask
}

fn set(mask: &mut [u64], position: usize) {
    mask[position / 64] |= 1 << (position % 64);
}

impl<'a> Matcher<'a> {
    /// A matcher that has seen no name yet.
    pub fn new(suppressions: &'a Suppressions) -> Self {
        let positions: usize = suppressions.rules().iter().map(|rule| rule.stack.len() + 1).sum();
        let words = positions.div_ceil(64);
        let (mut functions, mut objects, mut sources) = (Lines::default(), Lines::default(), Lines::default());
        let mut dots = vec![0; words];
        let (mut starts, mut ends) = (Vec::new(), Vec::new());
        let mut first = 0;
        for rule in suppressions.rules() {
            for (position, pattern) in (first..).zip(&rule.stack) {
                match pattern {
                    FramePattern::AnyFrames => set(&mut dots, position),
                    FramePattern::Function(text) => functions.add(LineKey(text, None), pattern, position),
                    FramePattern::Object(text) => objects.add(LineKey(text, None), pattern, position),
                    FramePattern::Source { file, line } => sources.add(LineKey(file, *line), pattern, position),
                    // Line 0 is none that a rule can ask for: paths do not meet the names of files.
                    FramePattern::Path(text) => sources.add(LineKey(text, Some(0)), pattern, position),
                }
            }
            let leading = rule.stack.iter().take_while(|line| **line == FramePattern::AnyFrames).count();
            starts.push((first..=first + leading).collect::<Vec<_>>());
            first += rule.stack.len() + 1;
            ends.push(first - 1);
        }
        let mut matcher = Self {
            suppressions,
            words,
            functions,
            objects,
            sources,
            dots,
            starts,
            end_mask: mask_of(words, &ends),
            ends,
            leak_starts: [const { None }; LeakKind::ALL.len()],
            masks: Vec::new(),
            numbers: HashMap::default(),
            by_function: HashMap::default(),
            by_object: HashMap::default(),
            by_source: HashMap::default(),
            unions: Vec::new(),
            known_unions: HashMap::default(),
            empty_union: None,
            by_frame: HashMap::default(),
            nameless: false,
            state: vec![0; words],
            next: vec![0; words],
        };
        for kind in LeakKind::ALL {
            let mask = matcher.starts_of(&Error::Leak(kind), None);
            matcher.leak_starts[kind as usize] = mask.iter().any(|&word| word != 0).then_some(mask);
        }
        matcher
    }

    /// A matcher for stacks whose functions and source files are not looked up yet: it finds a rule for every stack that
    /// the rules could hide.
    pub fn before_naming(suppressions: &'a Suppressions) -> Self {
        Self { nameless: true, ..Self::new(suppressions) }
    }

    fn starts_of(&self, error: &Error, called: Option<&Frame>) -> Vec<u64> {
        let mut mask = vec![0; self.words];
        for (rule, starts) in self.suppressions.rules().iter().zip(&self.starts) {
            if rule.kind.covers(error, called) {
                starts.iter().for_each(|&position| set(&mut mask, position));
            }
        }
        mask
    }

    /// The rule that hides `error` with this stack, innermost frame first: the one read last. Frames are asked for only
    /// as far as rules look.
    pub fn find<'f>(&mut self, error: &Error, frames: impl IntoIterator<Item = &'f Arc<Frame>>) -> Option<RuleId> {
        let mut frames = frames.into_iter().peekable();
        match error {
            Error::Leak(kind) => self.state.copy_from_slice(self.leak_starts[*kind as usize].as_ref()?),
            Error::Misuse(_) | Error::Memory { .. } => {
                self.state = self.starts_of(error, frames.peek().map(|frame| &***frame));
            }
        }
        let mut found = self.ended();
        let mut is_settled = false;
        while self.state.iter().any(|&word| word != 0) {
            let Some(frame) = frames.next() else { break };
            let lines = self.lines_of(frame);
            // A frame that matches no line leaves what is at a `...` and behind it; the next such frame changes nothing.
            // Most frames are of this kind.
            let is_empty = self.empty_union == Some(lines);
            if is_empty && is_settled {
                continue;
            }
            is_settled = is_empty;
            self.step(lines);
            found = found.max(self.ended());
        }
        found.map(|rule| RuleId(rule as u32))
    }

    /// The last rule whose end is among the positions.
    fn ended(&self) -> Option<usize> {
        let ended = self.state.iter().zip(&self.end_mask).map(|(state, ends)| state & ends);
        let (word, bits) = ended.enumerate().rfind(|&(_, bits)| bits != 0)?;
        let position = word * 64 + 63 - bits.leading_zeros() as usize;
        self.ends.binary_search(&position).ok()
    }

    /// Moves the positions on by a frame that matches the lines of this number.
    fn step(&mut self, lines: usize) {
        let lines = &self.unions[lines * self.words..(lines + 1) * self.words];
        let mut carry = 0;
        for (word, &lines) in lines.iter().enumerate() {
            let moved = self.state[word] & lines;
            self.next[word] = moved << 1 | carry | self.state[word] & self.dots[word];
            carry = moved >> 63;
        }
        // `...` also stands for no frame: who is at one is behind it too, and behind those that follow it.
        loop {
            let mut carry = 0;
            let mut changed = false;
            for (next, &dots) in self.next.iter_mut().zip(&self.dots) {
                let at_dots = *next & dots;
                let entered = *next | at_dots << 1 | carry;
                carry = at_dots >> 63;
                changed |= entered != *next;
                *next = entered;
            }
            if !changed {
                break;
            }
        }
        std::mem::swap(&mut self.state, &mut self.next);
    }

    /// Number of the union of the lines that a frame matches.
    fn lines_of(&mut self, frame: &Arc<Frame>) -> usize {
        let address = Arc::as_ptr(frame) as usize;
        if let Some((number, _)) = self.by_frame.get(&address) {
            return *number;
        }
        let parts = [self.function_mask(frame), self.object_mask(frame), self.source_mask(frame)];
        let number = match self.known_unions.get(&parts) {
            Some(&number) => number,
            None => {
                let masks = parts.map(|part| &self.masks[part]);
                let union = (0..self.words).map(|word| masks.iter().fold(0, |all, mask| all | mask[word]));
                let number = self.known_unions.len();
                if union.clone().all(|word| word == 0) {
                    self.empty_union = Some(number);
                }
                self.unions.extend(union);
                self.known_unions.insert(parts, number);
                number
            }
        };
        self.by_frame.insert(address, (number, frame.clone()));
        number
    }

    fn function_mask(&mut self, frame: &Frame) -> usize {
        let names = [name(frame.function.as_ref()), name(frame.linkage_name.as_ref())];
        let key = (names[0].0, names[1].0, frame.inlined);
        if let Some((mask, _)) = self.by_function.get(&key) {
            return *mask;
        }
        let mask = self.functions.mask(self.words, frame, self.nameless && frame.function.is_none());
        let mask = self.numbered(mask);
        self.by_function.insert(key, (mask, names));
        mask
    }

    fn object_mask(&mut self, frame: &Frame) -> usize {
        let object = name(Some(&frame.object));
        let key = (object.0, frame.hook);
        if let Some((mask, _)) = self.by_object.get(&key) {
            return *mask;
        }
        let mask = self.objects.mask(self.words, frame, false);
        let mask = self.numbered(mask);
        self.by_object.insert(key, (mask, object));
        mask
    }

    fn source_mask(&mut self, frame: &Frame) -> usize {
        let names = [name(frame.file.as_ref()), name(frame.directory.as_ref())];
        let key = (names[0].0, names[1].0, frame.line);
        if let Some((mask, _)) = self.by_source.get(&key) {
            return *mask;
        }
        let mask = self.sources.mask(self.words, frame, self.nameless && frame.file.is_none());
        let mask = self.numbered(mask);
        self.by_source.insert(key, (mask, names));
        mask
    }

    /// Equal masks are one: most names match nothing.
    fn numbered(&mut self, mask: Vec<u64>) -> usize {
        if let Some(&number) = self.numbers.get(&mask) {
            return number;
        }
        self.masks.push(mask.clone());
        self.numbers.insert(mask, self.masks.len() - 1);
        self.masks.len() - 1
    }
}
