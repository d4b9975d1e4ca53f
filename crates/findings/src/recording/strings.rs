//! Names, each once, while a recording is made.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::{FrameRecord, ResolvedFrame};

/// Names by number, as [`ProcessRecording::strings`](super::ProcessRecording::strings) has them.
#[derive(Clone, Debug)]
pub struct Strings {
    /// The names; the first is the empty one.
    pub list: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, u32, RandomState>,
}

impl Default for Strings {
    fn default() -> Self {
        let empty: Arc<str> = Arc::from("");
        Self { list: vec![empty.clone()], numbers: HashMap::from_iter([(empty, 0)]) }
    }
}

impl Strings {
    /// The number of a name, which is kept if it is new.
    pub fn number(&mut self, name: &str) -> u32 {
        if let Some(&number) = self.numbers.get(name) {
            return number;
        }
        let name: Arc<str> = Arc::from(name);
        let number = self.list.len() as u32;
        self.list.push(name.clone());
        self.numbers.insert(name, number);
        number
    }

    /// A frame with its names as numbers.
    pub fn frame(&mut self, frame: &ResolvedFrame) -> FrameRecord {
        let mut number = |name: Option<&str>| self.number(name.unwrap_or_default());
        let linkage_name = frame.linkage_name.as_deref().filter(|name| frame.function.as_deref() != Some(*name));
        FrameRecord {
            function: number(frame.function.as_deref()),
            linkage_name: number(linkage_name),
            file: number(frame.file.as_deref()),
            directory: number(frame.directory.as_deref()),
            line: frame.line.unwrap_or(0),
            column: frame.column.unwrap_or(0),
            inlined: frame.inlined,
        }
    }
}
