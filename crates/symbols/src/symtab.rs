//! The symbol tables of a module, merged and flattened so that one binary search names an address.
//!
//! Symbols nest (aliases, labels inside functions) and overlap. They are flattened once into disjoint segments, each
//! named by the symbol that starts last before it: at most two segments a symbol, whatever the file says.
//!
//! Of several names for one range we show the one that Memcheck 3.19 shows, so that suppressions written for it
//! match: the shortest name without its version, then the first in the alphabet (`malloc`, not `__libc_malloc`).

use std::cmp::{Ordering, Reverse};
use std::sync::Arc;

use gimli::{EndianSlice, Reader};

use crate::elf::Elf;

const STT_OBJECT: u8 = 1;
const STT_FUNC: u8 = 2;
const STT_GNU_IFUNC: u8 = 10;
const SYMBOL_BYTES: usize = 24;
const MAX_NAME_BYTES: usize = 64 << 10;

/// A piece of the address space and the symbol that names it.
struct Segment {
    start: u64,
    end: u64,
    /// Where the symbol begins and ends.
    symbol: (u64, u64),
    name: NameRef,
}

/// A name in one of the string tables.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct NameRef {
    table: u32,
    offset: u32,
}

/// One symbol as the file has it.
struct Symbol {
    start: u64,
    end: u64,
    /// Hand-written assembly without `.size`: it reaches to the next symbol, and yields to any symbol around it.
    sizeless: bool,
    name: NameRef,
}

/// Collects symbols from several tables.
#[derive(Default)]
pub(crate) struct SymbolsBuilder {
    strings: Vec<Arc<[u8]>>,
    symbols: Vec<Symbol>,
}

impl SymbolsBuilder {
    /// Adds the function symbols of one table; says whether there were any.
    pub(crate) fn add(&mut self, elf: &Elf, section: &str) -> bool {
        let before = self.symbols.len();
        self.try_add(elf, section, &[STT_FUNC, STT_GNU_IFUNC]);
        self.symbols.len() > before
    }

    /// Adds the data symbols of one table.
    pub(crate) fn add_data(&mut self, elf: &Elf, section: &str) {
        self.try_add(elf, section, &[STT_OBJECT]);
    }

    fn try_add(&mut self, elf: &Elf, section: &str, kinds: &[u8]) -> Option<()> {
        let header = elf.section(section)?;
        let strings = elf.contents(elf.sections.get(header.link as usize)?)?;
        let raw = elf.contents(header)?;
        let table = u32::try_from(self.strings.len()).ok()?;
        self.strings.push(strings);
        for entry in raw.chunks_exact(SYMBOL_BYTES) {
            let mut reader = EndianSlice::new(entry, elf.endian);
            let offset = reader.read_u32().ok()?;
            let kind = reader.read_u8().ok()? & 0xf;
            reader.skip(1).ok()?;
            let section = reader.read_u16().ok()?;
            let start = reader.read_u64().ok()?;
            let size = reader.read_u64().ok()?;
            let is_empty_data = kind == STT_OBJECT && size == 0;
            if section == 0 || start == 0 || !kinds.contains(&kind) || is_empty_data {
                continue;
            }
            let end = match size {
                0 => elf.sections.get(usize::from(section)).map_or(start, |section| section.end_address()),
                _ => start.saturating_add(size),
            };
            if end > start {
                self.symbols.push(Symbol { start, end, sizeless: size == 0, name: NameRef { table, offset } });
            }
        }
        Some(())
    }

    /// Flattens what was collected.
    pub(crate) fn finish(self) -> Symbols {
        let SymbolsBuilder { strings, mut symbols } = self;
        cut_sizeless(&mut symbols);
        symbols.sort_unstable_by(|a, b| {
            (a.start, Reverse(a.end))
                .cmp(&(b.start, Reverse(b.end)))
                .then_with(|| compare_names(name_at(&strings, a.name), name_at(&strings, b.name)))
        });
        symbols.dedup_by_key(|symbol| (symbol.start, symbol.end));
        let segments = flatten(&symbols);
        Symbols { strings, segments }
    }
}

/// Ends symbols without a size at the next symbol, and drops those inside a symbol that has one.
fn cut_sizeless(symbols: &mut Vec<Symbol>) {
    symbols.sort_unstable_by_key(|symbol| (symbol.start, symbol.sizeless));
    let starts: Vec<u64> = symbols.iter().map(|symbol| symbol.start).collect();
    let mut sized_end = 0;
    symbols.retain_mut(|symbol| {
        if !symbol.sizeless {
            sized_end = sized_end.max(symbol.end);
            return true;
        }
        if let Some(&next) = starts.get(starts.partition_point(|&start| start <= symbol.start)) {
            symbol.end = symbol.end.min(next);
        }
        symbol.start >= sized_end
    });
}

/// Sweeps over symbols sorted by start, longest first: the innermost open symbol names each piece.
fn flatten(symbols: &[Symbol]) -> Vec<Segment> {
    let mut segments = Vec::with_capacity(symbols.len());
    let mut open: Vec<&Symbol> = Vec::new();
    let mut position = 0;
    let mut close_until = |open: &mut Vec<&Symbol>, position: &mut u64, limit: u64| {
        while let Some(&symbol) = open.last() {
            let end = symbol.end.min(limit);
            if *position < end {
                segments.push(Segment { start: *position, end, symbol: (symbol.start, symbol.end), name: symbol.name });
                *position = end;
            }
            if symbol.end > limit {
                break;
            }
            open.pop();
        }
        *position = limit;
    };
    for symbol in symbols {
        close_until(&mut open, &mut position, symbol.start);
        open.push(symbol);
    }
    close_until(&mut open, &mut position, u64::MAX);
    segments
}

/// The function symbols, or the data symbols, of a module.
#[derive(Default)]
pub(crate) struct Symbols {
    strings: Vec<Arc<[u8]>>,
    segments: Vec<Segment>,
}

impl Symbols {
    /// The symbol whose range holds an address.
    pub(crate) fn find(&self, address: u64) -> Option<NameRef> {
        let index = self.segments.partition_point(|segment| segment.end <= address);
        self.segments.get(index).filter(|segment| segment.start <= address).map(|segment| segment.name)
    }

    /// Where the symbol begins whose range holds an address.
    pub(crate) fn start(&self, address: u64) -> Option<u64> {
        self.extent(address).map(|(start, _)| start)
    }

    /// Where the symbol begins and ends whose range holds an address.
    pub(crate) fn extent(&self, address: u64) -> Option<(u64, u64)> {
        let index = self.segments.partition_point(|segment| segment.end <= address);
        self.segments.get(index).filter(|segment| segment.start <= address).map(|segment| segment.symbol)
    }

    /// The raw name of a symbol, without its version.
    pub(crate) fn name(&self, name: NameRef) -> &[u8] {
        unversioned(name_at(&self.strings, name))
    }

    /// Whether no symbol is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }
}

fn name_at(strings: &[Arc<[u8]>], name: NameRef) -> &[u8] {
    let rest = strings.get(name.table as usize).and_then(|table| table.get(name.offset as usize..)).unwrap_or(&[]);
    // Damaged tables have no terminators, and then every comparison would walk the whole table.
    let rest = &rest[..rest.len().min(MAX_NAME_BYTES)];
    rest.split(|&byte| byte == 0).next().unwrap_or(&[])
}

fn unversioned(name: &[u8]) -> &[u8] {
    name.split(|&byte| byte == b'@').next().unwrap_or(name)
}

/// Orders names by Memcheck's preference, the preferred one first; nameless symbols last.
fn compare_names(a: &[u8], b: &[u8]) -> Ordering {
    let key = |name: &[u8]| {
        let len = unversioned(name).len();
        (len == 0, len, len == name.len())
    };
    key(a).cmp(&key(b)).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn builder(table: &[(u64, u64, &str)]) -> SymbolsBuilder {
        let mut strings = Vec::new();
        let mut symbols = Vec::new();
        for &(start, end, name) in table {
            let name_ref = NameRef { table: 0, offset: strings.len() as u32 };
            strings.extend(name.bytes().chain([0]));
            symbols.push(Symbol { start, end, sizeless: end == 1000, name: name_ref });
        }
        SymbolsBuilder { strings: vec![strings.into()], symbols }
    }

    fn name(symbols: &Symbols, address: u64) -> Option<String> {
        symbols.find(address).map(|name| String::from_utf8_lossy(symbols.name(name)).into_owned())
    }

    #[test]
    fn of_several_names_the_shortest_wins() {
        let table = [(10, 20, "__libc_malloc"), (10, 20, "malloc@@GLIBC_2.2.5"), (10, 20, "__malloc"), (10, 20, "")];
        assert_eq!(name(&builder(&table).finish(), 15).as_deref(), Some("malloc"));
        let table = [(10, 20, "_ZN1AC2Ev"), (10, 20, "_ZN1AC1Ev")];
        assert_eq!(name(&builder(&table).finish(), 15).as_deref(), Some("_ZN1AC1Ev"));
    }

    #[test]
    fn symbols_without_size_fill_gaps_only() {
        let symbols = builder(&[(10, 20, "sized"), (15, 1000, "label"), (20, 1000, "stub"), (30, 40, "next")]).finish();
        let names: Vec<_> = [9, 10, 16, 20, 29, 30, 40].iter().map(|&address| name(&symbols, address)).collect();
        let expected = [None, Some("sized"), Some("sized"), Some("stub"), Some("stub"), Some("next"), None];
        assert_eq!(names, expected.map(|name| name.map(str::to_owned)));
    }

    /// The model: of all symbols that hold the address, the one that starts last, and of those the one that ends
    /// first.
    #[test]
    fn flattened_symbols_agree_with_a_linear_search() {
        let mut state = 1_u64;
        let mut random = |bound: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % bound
        };
        for _ in 0..300 {
            let count = random(12);
            let ranges: Vec<(u64, u64, String)> = (0..count)
                .map(|index| {
                    let start = 1 + random(60);
                    (start, start + 1 + random(30), format!("name{index}"))
                })
                .collect();
            let table: Vec<_> = ranges.iter().map(|(start, end, name)| (*start, *end, name.as_str())).collect();
            let symbols = builder(&table).finish();
            assert!(symbols.segments.len() <= 2 * table.len());
            for address in 0..100 {
                let model = table
                    .iter()
                    .filter(|(start, end, _)| (*start..*end).contains(&address))
                    .min_by_key(|(start, end, name)| (Reverse(*start), *end, name.len(), *name));
                assert_eq!(name(&symbols, address).as_deref(), model.map(|entry| entry.2), "{table:?} at {address}");
            }
        }
    }
}
