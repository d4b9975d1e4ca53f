//! Functions of the running kernel by address: `/proc/kallsyms`, or a `System.map`, which has the same lines.
//!
//! Source: Linux `kernel/kallsyms.c`, `s_show`; without the right to see addresses all of them are zero.

use crate::Places;
use crate::dump::Frame;

/// A function of the kernel or a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Its address.
    pub address: u64,
    /// Its name.
    pub name: &'a str,
    /// Its module; empty for the kernel itself.
    pub module: &'a str,
}

/// All functions, sorted by address.
#[derive(Clone, Debug, Default)]
pub struct Kallsyms {
    text: String,
    /// Address, begin of the name in `text`, its length, and the length of the module behind ` [` or a tab and `[`.
    symbols: Vec<(u64, u32, u16, u16)>,
}

/// Bytes of a table that are read; a kernel with all its modules has some 15 million.
const MOST_BYTES: usize = 256 << 20;

/// No function is as long: an address that far behind one belongs to something that is not in the table.
const LONGEST_FUNCTION: u64 = 1 << 20;

impl Kallsyms {
    /// The functions of a table in the form of `/proc/kallsyms`; other lines are passed over.
    pub fn decode(text: String) -> Self {
        let mut symbols = Vec::new();
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            let begin = at;
            at += line.len();
            if at > MOST_BYTES {
                break;
            }
            if let Some((address, name, name_bytes, module_bytes)) = decode_line(line.trim_end()) {
                symbols.push((address, (begin + name) as u32, name_bytes, module_bytes));
            }
        }
        symbols.sort_by_key(|symbol| symbol.0);
        Self { text, symbols }
    }

    /// The running kernel's; empty when its addresses are hidden.
    pub fn read(places: &Places) -> Self {
        Self::decode(places.read("/proc/kallsyms").unwrap_or_default())
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }

    fn symbol(&self, entry: &(u64, u32, u16, u16)) -> Symbol<'_> {
        let (address, begin, name_bytes, module_bytes) = *entry;
        let end = begin as usize + usize::from(name_bytes);
        let module = self.text.get(end + 2..end + 2 + usize::from(module_bytes)).filter(|_| module_bytes > 0);
        Symbol {
            address,
            name: self.text.get(begin as usize..end).unwrap_or_default(),
            module: module.unwrap_or_default(),
        }
    }

    /// The function that an address lies in: the last one at or before it.
    pub fn find(&self, address: u64) -> Option<Symbol<'_>> {
        let after = self.symbols.partition_point(|symbol| symbol.0 <= address);
        let mut at = after.checked_sub(1)?;
        // Of several names of one address the first of the table is the one that the kernel prints.
        while at > 0 && self.symbols[at - 1].0 == self.symbols[at].0 {
            at -= 1;
        }
        Some(self.symbol(&self.symbols[at]))
    }

    /// The frame of a return address; `None` where no function is near.
    pub fn frame(&self, address: u64) -> Option<Frame> {
        // The byte before it is in the call.
        let symbol = self.find(address.checked_sub(1)?)?;
        let after = self.symbols.partition_point(|other| other.0 <= symbol.address);
        let size = self.symbols.get(after).map_or(0, |next| next.0 - symbol.address);
        let offset = address - symbol.address;
        (offset < LONGEST_FUNCTION).then(|| Frame {
            function: symbol.name.to_owned(),
            offset,
            size,
            module: symbol.module.to_owned(),
        })
    }

    /// All functions, by address.
    pub fn iter(&self) -> impl Iterator<Item = Symbol<'_>> {
        self.symbols.iter().map(|entry| self.symbol(entry))
    }
}

/// `ffffffffc0a0 t make_object\t[leaky]`: address, place and length of the name, length of the module's name.
fn decode_line(line: &str) -> Option<(u64, usize, u16, u16)> {
    let (digits, rest) = line.split_once(' ')?;
    let address = u64::from_str_radix(digits, 16).ok().filter(|&address| address != 0)?;
    let (kind, rest) = rest.split_once(' ')?;
    if !matches!(kind, "t" | "T" | "w" | "W") {
        return None;
    }
    let begin = line.len() - rest.len();
    let (name, module) = match rest.split_once("\t[") {
        Some((name, module)) => (name, module.strip_suffix(']')?),
        None => (rest, ""),
    };
    let length = |text: &str| u16::try_from(text.len()).ok();
    Some((address, begin, length(name)?, length(module)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_by_address() {
        let table = "ffffffffc0002000 t make_object\t[leaky]\nffffffff81000000 T _stext\nffffffff81000000 T _text\n\
                     ffffffff81000100 D data\nffffffff81000200 t f\n0000000000000000 T hidden\nnoise\n";
        let symbols = Kallsyms::decode(table.to_owned());
        let found = symbols.find(0xffff_ffff_c000_202b).unwrap();
        assert_eq!((found.name, found.module, found.address), ("make_object", "leaky", 0xffff_ffff_c000_2000));
        assert_eq!(symbols.find(0xffff_ffff_8100_0150).unwrap().name, "_stext");
        assert_eq!(symbols.find(0xffff_ffff_8100_0200).unwrap().module, "");
        assert_eq!(symbols.find(1), None);
        let frame = symbols.frame(0xffff_ffff_8100_0200).unwrap();
        assert_eq!(
            (frame.function.as_str(), frame.offset, frame.size),
            ("_stext", 0x200, 0x200),
            "the call was its last"
        );
        assert_eq!(symbols.frame(0xffff_ffff_9000_0000), None, "too far behind `f`");
        assert_eq!(symbols.frame(0), None);
        assert_eq!(symbols.iter().count(), 4);
        assert!(Kallsyms::decode("0000000000000000 T a\n".to_owned()).is_empty());
    }
}
