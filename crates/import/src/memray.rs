//! memray's tables: what `memray table --leaks` writes (the page, or the JSON in it alone), and `memray stats --json`.
//!
//! Source: memray 1.20, `src/memray/reporters/table.py` and `stats.py`. A row of the table has a size, a count, the
//! allocator, the thread, and one frame (`grow at mr.py:3`); of the statistics the largest places alone have sizes. JSON
//! is read row by row.

use std::fmt;
use std::io::{self, BufRead, Read};

use leakscope_model::Tool;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::sink::{FrameText, Front, Process, Sink};

/// What stands before the JSON in the page.
const MARK: &[u8] = b"packed_data = ";

/// Whether a text is JSON of memray's, or its page.
pub(crate) fn is_table(text: &str) -> bool {
    let trimmed = text.trim_start();
    if trimmed.starts_with('[') {
        return trimmed.contains("\"stack_trace\"") && trimmed.contains("\"n_allocations\"");
    }
    if trimmed.starts_with('{') {
        return trimmed.contains("\"total_num_allocations\"") || trimmed.contains("\"allocator_type_distribution\"");
    }
    text.contains("<title>memray") || trimmed.starts_with("<!DOCTYPE html") && text.contains("memray")
}

#[derive(Deserialize)]
struct Row {
    #[serde(default)]
    size: u64,
    #[serde(default)]
    n_allocations: u64,
    #[serde(default)]
    stack_trace: String,
    #[serde(default)]
    tid: String,
}

#[derive(Deserialize)]
struct Top {
    #[serde(default)]
    location: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    count: u64,
}

/// Reads a table.
pub(crate) fn read(input: &mut dyn BufRead, sink: &mut Sink) -> io::Result<()> {
    let number = sink.process(0, Tool::Memray);
    let process = &mut sink.processes[number];
    process.out.process.executable = "python".to_owned();
    process.out.process.command_line = vec!["python".to_owned()];
    let first = loop {
        let available = input.fill_buf()?;
        match available.iter().position(|byte| !byte.is_ascii_whitespace()) {
            Some(at) => {
                let byte = available[at];
                input.consume(at);
                break byte;
            }
            None if available.is_empty() => return Ok(()),
            None => {
                let length = available.len();
                input.consume(length);
            }
        }
    };
    if first != b'[' && first != b'{' && !skip_to_mark(input)? {
        sink.unread(1, "the page has no table of memray's");
        return Ok(());
    }
    let mut json = serde_json::Deserializer::from_reader(input);
    let result = Table(&mut sink.processes[number]).deserialize(&mut json);
    if let Err(error) = result {
        if error.is_io() {
            return Err(error.into());
        }
        sink.unread(error.line() as u64, &error.to_string());
    }
    Ok(())
}

/// Reads up to and including the mark.
fn skip_to_mark(input: &mut dyn BufRead) -> io::Result<bool> {
    let mut matched = 0;
    for byte in input.bytes() {
        let byte = byte?;
        // The mark's first byte does not come again within it before `d`: falling back to it is enough.
        matched = if byte == MARK[matched] { matched + 1 } else { usize::from(byte == MARK[0]) };
        if matched == MARK.len() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A table as it is read, row by row.
struct Table<'a>(&'a mut Process);

impl<'de> DeserializeSeed<'de> for Table<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Table<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table or statistics of memray")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<(), A::Error> {
        while let Some(row) = rows.next_element::<Row>()? {
            let (function, place) = row.stack_trace.split_once(" at ").unwrap_or((&row.stack_trace, ""));
            let (file, line) = place.rsplit_once(':').unwrap_or((place, ""));
            let leaf = leaf(self.0, &plain(function), &plain(file), line);
            let site = self.0.site(leaf, Front::Caller);
            self.0.live(site, row.size, row.n_allocations);
            let tid = row.tid.trim_start_matches("0x").split(' ').next().unwrap_or_default();
            self.0.thread(u32::from_str_radix(tid, 16).unwrap_or(0));
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut counts: Vec<(String, u64)> = Vec::new();
        let mut sizes: Vec<(String, u64)> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "top_allocations_by_size" | "top_locations_by_size" => {
                    sizes = map.next_value::<Vec<Top>>()?.into_iter().map(|top| (top.location, top.size)).collect();
                }
                "top_allocations_by_count" | "top_locations_by_count" => {
                    counts = map.next_value::<Vec<Top>>()?.into_iter().map(|top| (top.location, top.count)).collect();
                }
                "metadata" => self.0.out.process.command_line = command_line(map.next_value()?),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        for (location, size) in sizes {
            // `grow:mr.py:3`, and file names hold colons too.
            let (front, line) = location.rsplit_once(':').unwrap_or((&location, ""));
            let (function, file) = front.split_once(':').unwrap_or((front, ""));
            let leaf = leaf(self.0, function, file, line);
            let site = self.0.site(leaf, Front::Caller);
            let blocks = counts.iter().find(|(place, _)| *place == location).map_or(1, |&(_, count)| count.max(1));
            self.0.live(site, size, blocks);
        }
        let sentence = "statistics name the largest places alone; `memray table --leaks` has all of them";
        self.0.out.problems.push(sentence.to_owned());
        Ok(())
    }
}

fn command_line(metadata: serde_json::Value) -> Vec<String> {
    let line = metadata.get("command_line").and_then(|line| line.as_str()).unwrap_or("python");
    line.split(' ').map(str::to_owned).collect()
}

/// The page escapes names for HTML.
fn plain(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&#x27;", "'").replace("&amp;", "&")
}

fn leaf(process: &mut Process, function: &str, file: &str, line: &str) -> u32 {
    let line = line.parse().unwrap_or(0);
    // An address of its own for each line keeps two lines of one function apart.
    let frame = process.frame(&FrameText { pc: u64::from(line), function, file, line, ..FrameText::default() });
    process.stack(&[frame])
}
