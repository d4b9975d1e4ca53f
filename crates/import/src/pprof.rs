//! pprof's protobuf profiles, of heaps: Go's, jemalloc's and tcmalloc's converted ones, our own.
//!
//! Source: github.com/google/pprof `proto/profile.proto`, and protobuf's wire format. The tables (locations, functions,
//! strings) follow the samples and refer to each other, so all of them are kept; a table is as large as its bytes in the
//! file and never as a number in it says.

use std::io::{self, BufRead, Read};

use leakscope_model::Tool;

use crate::sink::{Base, FrameText, Front, Map, Sink};

/// Bytes of one message of a table; a location with hundreds of inlined functions has some thousand.
const LONGEST: u64 = 64 << 20;

/// A field of a message.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, up to the first that makes no sense.
struct Fields<'a>(&'a [u8]);

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Field<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let key = varint(&mut self.0)?;
        let field = match key & 7 {
            0 => Field::Number(varint(&mut self.0)?),
            1 => fixed(&mut self.0, 8)?,
            2 => {
                let length = usize::try_from(varint(&mut self.0)?).ok()?;
                let (bytes, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                Field::Bytes(bytes)
            }
            5 => fixed(&mut self.0, 4)?,
            _ => return None,
        };
        Some((key >> 3, field))
    }
}

fn fixed<'a>(bytes: &mut &'a [u8], length: usize) -> Option<Field<'a>> {
    let (number, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(Field::Number(number.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))))
}

/// Numbers of a repeated field, packed or not.
fn numbers(field: &Field<'_>, into: &mut Vec<u64>) {
    match field {
        Field::Number(number) => into.push(*number),
        Field::Bytes(bytes) => {
            let mut rest = *bytes;
            while !rest.is_empty() {
                let Some(number) = varint(&mut rest) else { return };
                into.push(number);
            }
        }
    }
}

#[derive(Default)]
struct Profile {
    sample_types: Vec<u64>,
    samples: Vec<(Vec<u64>, Vec<u64>)>,
    mappings: Map<u64, Mapping>,
    locations: Map<u64, Place>,
    functions: Map<u64, Function>,
    strings: Vec<String>,
    period: u64,
}

#[derive(Default)]
struct Mapping {
    start: u64,
    offset: u64,
    file: u64,
    build_id: u64,
}

#[derive(Default)]
struct Place {
    mapping: u64,
    address: u64,
    /// Function and line, innermost first.
    lines: Vec<(u64, u64)>,
}

#[derive(Default)]
struct Function {
    name: u64,
    system_name: u64,
    file: u64,
}

/// Whether bytes begin as such a profile does: with fields of its message alone, value types among them.
pub(crate) fn is_profile(bytes: &[u8]) -> bool {
    let is_value_type = |bytes: &[u8]| {
        let mut fields = Fields(bytes);
        let small = |(number, field): (u64, Field<'_>)| {
            (number == 1 || number == 2) && matches!(field, Field::Number(text) if text < 1 << 20)
        };
        bytes.len() <= 8 && fields.by_ref().all(small) && fields.0.is_empty()
    };
    let mut fields = Fields(bytes);
    let mut value_types = 0;
    // Text has no such bytes in front.
    let is_text = bytes.first().is_none_or(|&byte| byte >= 0x20 && byte != 0x5a);
    for (number, field) in fields.by_ref().take(4096) {
        match (number, field) {
            (1 | 11, Field::Bytes(bytes)) if is_value_type(bytes) => value_types += 1,
            (2..=6, Field::Bytes(_)) | (13, _) | (7..=15, Field::Number(_)) => {}
            _ => return false,
        }
    }
    // What is left is a field that the head of the file cuts off.
    !is_text && value_types > 0 && (fields.0.is_empty() || fields.0.len() < bytes.len())
}

/// Reads a profile.
pub(crate) fn read(input: &mut dyn BufRead, sink: &mut Sink) -> io::Result<()> {
    let mut profile = Profile::default();
    let mut buffer = Vec::new();
    let mut bytes_read = 0_u64;
    while let Some(key) = read_varint(input, &mut bytes_read)? {
        match key & 7 {
            0 => {
                let Some(number) = read_varint(input, &mut bytes_read)? else { break };
                profile.field(key >> 3, &Field::Number(number));
            }
            2 => {
                let Some(length) = read_varint(input, &mut bytes_read)?.filter(|&length| length <= LONGEST) else {
                    sink.unread(bytes_read, &format!("byte {bytes_read}: a message without a possible length"));
                    break;
                };
                buffer.clear();
                let got = (&mut *input).take(length).read_to_end(&mut buffer)? as u64;
                bytes_read += got;
                if got < length {
                    sink.unread(bytes_read, &format!("byte {bytes_read}: the profile is cut off"));
                    break;
                }
                profile.field(key >> 3, &Field::Bytes(&buffer));
            }
            _ => {
                sink.unread(bytes_read, &format!("byte {bytes_read}: no field of a profile"));
                break;
            }
        }
    }
    profile.put(sink);
    Ok(())
}

fn read_varint(input: &mut dyn BufRead, bytes_read: &mut u64) -> io::Result<Option<u64>> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        if input.read(&mut byte)? == 0 {
            return Ok(None);
        }
        *bytes_read += 1;
        value |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] < 0x80 {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

impl Profile {
    fn field(&mut self, number: u64, field: &Field<'_>) {
        match (number, field) {
            (1, Field::Bytes(bytes)) => {
                let kind = Fields(bytes).find_map(|(number, field)| match (number, field) {
                    (1, Field::Number(text)) => Some(text),
                    _ => None,
                });
                self.sample_types.push(kind.unwrap_or(0));
            }
            (2, Field::Bytes(bytes)) => {
                let (mut places, mut values) = (Vec::new(), Vec::new());
                for (number, field) in Fields(bytes) {
                    match number {
                        1 => numbers(&field, &mut places),
                        2 => numbers(&field, &mut values),
                        _ => {}
                    }
                }
                places.truncate(crate::sink::DEEPEST);
                self.samples.push((places, values));
            }
            (3, Field::Bytes(bytes)) => {
                let (mut id, mut mapping) = (0, Mapping::default());
                for (number, field) in Fields(bytes) {
                    let Field::Number(value) = field else { continue };
                    match number {
                        1 => id = value,
                        2 => mapping.start = value,
                        4 => mapping.offset = value,
                        5 => mapping.file = value,
                        6 => mapping.build_id = value,
                        _ => {}
                    }
                }
                self.mappings.insert(id, mapping);
            }
            (4, Field::Bytes(bytes)) => self.location(bytes),
            (5, Field::Bytes(bytes)) => {
                let (mut id, mut function) = (0, Function::default());
                for (number, field) in Fields(bytes) {
                    let Field::Number(value) = field else { continue };
                    match number {
                        1 => id = value,
                        2 => function.name = value,
                        3 => function.system_name = value,
                        4 => function.file = value,
                        _ => {}
                    }
                }
                self.functions.insert(id, function);
            }
            (6, Field::Bytes(bytes)) => self.strings.push(String::from_utf8_lossy(bytes).into_owned()),
            (12, Field::Number(period)) => self.period = *period,
            _ => {}
        }
    }

    fn location(&mut self, bytes: &[u8]) {
        let (mut id, mut place) = (0, Place::default());
        for (number, field) in Fields(bytes) {
            match (number, field) {
                (1, Field::Number(value)) => id = value,
                (2, Field::Number(value)) => place.mapping = value,
                (3, Field::Number(value)) => place.address = value,
                (4, Field::Bytes(bytes)) => {
                    let mut line = (0, 0);
                    for (number, field) in Fields(bytes) {
                        match (number, field) {
                            (1, Field::Number(value)) => line.0 = value,
                            (2, Field::Number(value)) => line.1 = value,
                            _ => {}
                        }
                    }
                    place.lines.push(line);
                }
                _ => {}
            }
        }
        self.locations.insert(id, place);
    }

    fn string(&self, number: u64) -> &str {
        usize::try_from(number).ok().and_then(|number| self.strings.get(number)).map_or("", String::as_str)
    }

    /// Which value of a sample has this name, by preference.
    fn value(&self, names: &[&str]) -> Option<usize> {
        names.iter().find_map(|name| self.sample_types.iter().position(|&kind| self.string(kind) == *name))
    }

    fn put(self, sink: &mut Sink) {
        let number = sink.process(0, Tool::Pprof);
        let live_bytes = self.value(&["inuse_space", "space", "live_bytes"]);
        let live_blocks = self.value(&["inuse_objects", "objects", "live_objects"]);
        let bytes = self.value(&["alloc_space"]);
        let blocks = self.value(&["alloc_objects"]);
        if live_bytes.is_none() && bytes.is_none() {
            let names: Vec<&str> = self.sample_types.iter().map(|&kind| self.string(kind)).collect();
            let sentence = format!("the profile counts `{}` and no memory", names.join("`, `"));
            sink[number].out.problems.push(sentence);
            return;
        }
        let process = &mut sink.processes[number];
        process.out.process.sample_bytes = if self.period > 1 { self.period } else { 0 };
        let first = self.mappings.values().min_by_key(|mapping| mapping.start);
        if let Some(executable) = first.map(|mapping| self.string(mapping.file)) {
            executable.clone_into(&mut process.out.process.executable);
            process.out.process.command_line = vec![executable.to_owned()];
        }
        let mut kept: Map<u64, Vec<u32>> = Map::default();
        for (places, values) in &self.samples {
            let at = |which: Option<usize>| {
                // Differences between profiles may be negative.
                let value = which.and_then(|which| values.get(which)).map_or(0, |&value| value as i64);
                u64::try_from(value).unwrap_or(0)
            };
            let mut frames = Vec::new();
            for &place in places {
                let of_place = kept.entry(place).or_insert_with(|| self.frames(process, place));
                frames.extend_from_slice(of_place);
            }
            let leaf = process.stack(&frames);
            let site = process.site(leaf, Front::Caller);
            let totals = process.totals(site);
            let live = (at(live_bytes), at(live_blocks));
            let all = (at(bytes).max(live.0), at(blocks).max(live.1));
            // A sample of some bytes is at least one block, even where blocks are not counted.
            let live_count = if live.0 > 0 { live.1.max(1) } else { live.1 };
            totals.live_bytes = totals.live_bytes.saturating_add(live.0);
            totals.live_blocks = totals.live_blocks.saturating_add(live_count);
            totals.allocated_bytes = totals.allocated_bytes.saturating_add(all.0);
            totals.allocated_blocks = totals.allocated_blocks.saturating_add(all.1.max(live_count));
            totals.freed_bytes = totals.freed_bytes.saturating_add(all.0 - live.0);
            totals.freed_blocks = totals.freed_blocks.saturating_add(all.1.max(live_count) - live_count);
        }
    }

    /// The frames of a location, innermost first.
    fn frames(&self, process: &mut crate::sink::Process, place: u64) -> Vec<u32> {
        let Some(place) = self.locations.get(&place) else { return Vec::new() };
        let mapping = self.mappings.get(&place.mapping);
        let path = mapping.map_or("", |mapping| self.string(mapping.file));
        // A mapping's file offset is that of its link-time address in all but odd layouts.
        let offset = mapping
            .filter(|mapping| mapping.start != 0 && place.address >= mapping.start)
            .map(|mapping| place.address - mapping.start + mapping.offset);
        let module = process.module(path, Base::FirstByte, place.address, offset);
        if let (Some(number), Some(mapping)) = (module.checked_sub(1), mapping) {
            let id = self.string(mapping.build_id);
            process.modules[number as usize].build_id = build_id(id);
        }
        let base = FrameText { pc: place.address, module, offset, ..FrameText::default() };
        if place.lines.is_empty() {
            return vec![process.frame(&base)];
        }
        let name = |&(function, line): &(u64, u64)| {
            let function = self.functions.get(&function);
            let text = |pick: fn(&Function) -> u64| function.map_or("", |function| self.string(pick(function)));
            let (name, system) = (text(|f| f.name), text(|f| f.system_name));
            let mangled = system.starts_with("_Z") || system.starts_with("_R");
            let line = u32::try_from(line).unwrap_or(0);
            FrameText { function: if mangled { system } else { name }, file: text(|f| f.file), line, ..base }
        };
        place.lines.iter().take(64).map(|line| process.frame(&name(line))).collect()
    }
}

/// A build id in hex.
fn build_id(text: &str) -> Vec<u8> {
    if text.len() > 128 || !text.len().is_multiple_of(2) || !text.is_ascii() {
        return Vec::new();
    }
    (0..text.len()).step_by(2).map_while(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}
