//! What the running kernel's BTF says of its tracepoints and functions: which exist, and what their arguments are.
//!
//! The loader library reads BTF to relocate programs; this reads what it does not tell: parameters. Total: any bytes
//! give an answer or `None`. Source: Documentation/bpf/btf.rst of the kernel.

use std::collections::HashMap;

/// A parameter of a function or tracepoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name; empty in prototypes of tracepoints.
    pub name: String,
    /// Whether it is a pointer.
    pub is_pointer: bool,
}

/// An index of the kernel's types.
#[derive(Debug)]
pub struct Index {
    types: Vec<Type>,
    parameters: Vec<(u32, u32)>,
    strings: Vec<u8>,
    functions: HashMap<String, u32>,
    typedefs: HashMap<String, u32>,
    structs: HashMap<String, u32>,
}

#[derive(Clone, Copy, Debug)]
struct Type {
    kind: u8,
    /// A size, or the number of another type.
    size_or_type: u32,
    first_parameter: u32,
    parameters: u32,
}

mod kind {
    pub(super) const INT: u8 = 1;
    pub(super) const PTR: u8 = 2;
    pub(super) const ARRAY: u8 = 3;
    pub(super) const STRUCT: u8 = 4;
    pub(super) const UNION: u8 = 5;
    pub(super) const ENUM: u8 = 6;
    pub(super) const TYPEDEF: u8 = 8;
    pub(super) const VOLATILE: u8 = 9;
    pub(super) const CONST: u8 = 10;
    pub(super) const RESTRICT: u8 = 11;
    pub(super) const FUNC: u8 = 12;
    pub(super) const FUNC_PROTO: u8 = 13;
    pub(super) const VAR: u8 = 14;
    pub(super) const DATASEC: u8 = 15;
    pub(super) const DECL_TAG: u8 = 17;
    pub(super) const TYPE_TAG: u8 = 18;
    pub(super) const ENUM64: u8 = 19;
}

const MAGIC: u16 = 0xeb9f;

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

impl Index {
    /// Reads the bytes of /sys/kernel/btf/vmlinux; `None` when they are not BTF of this byte order.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if u16::from_le_bytes(bytes.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let header = u32_at(bytes, 4)? as usize;
        let section = |offset: usize, length: usize| {
            let start = header.checked_add(u32_at(bytes, offset)? as usize)?;
            bytes.get(start..start.checked_add(u32_at(bytes, length)? as usize)?)
        };
        let (all, strings) = (section(8, 12)?, section(16, 20)?.to_vec());
        let mut index = Self {
            types: vec![Type { kind: 0, size_or_type: 0, first_parameter: 0, parameters: 0 }],
            parameters: Vec::new(),
            strings,
            functions: HashMap::new(),
            typedefs: HashMap::new(),
            structs: HashMap::new(),
        };
        let mut at = 0;
        while at + 12 <= all.len() {
            let (name, info, size_or_type) = (u32_at(all, at)?, u32_at(all, at + 4)?, u32_at(all, at + 8)?);
            let (count, kind) = ((info & 0xffff) as usize, ((info >> 24) & 31) as u8);
            at += 12;
            let number = index.types.len() as u32;
            let first_parameter = index.parameters.len() as u32;
            if kind == kind::FUNC_PROTO {
                for parameter in 0..count {
                    let place = at + parameter * 8;
                    index.parameters.push((u32_at(all, place)?, u32_at(all, place + 4)?));
                }
            }
            let parameters = index.parameters.len() as u32 - first_parameter;
            index.types.push(Type { kind, size_or_type, first_parameter, parameters });
            let names = match kind {
                kind::FUNC => Some(&mut index.functions),
                kind::TYPEDEF => Some(&mut index.typedefs),
                kind::STRUCT => Some(&mut index.structs),
                _ => None,
            };
            if let Some(names) = names {
                names.entry(string(&index.strings, name)).or_insert(number);
            }
            at += match kind {
                kind::INT | kind::VAR | kind::DECL_TAG => 4,
                kind::ARRAY => 12,
                kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * count,
                kind::ENUM | kind::FUNC_PROTO => 8 * count,
                _ => 0,
            };
        }
        Some(index)
    }

    /// The arguments of a raw tracepoint, if the kernel has it.
    pub fn tracepoint(&self, name: &str) -> Option<Vec<Parameter>> {
        let typedef = *self.typedefs.get(&format!("btf_trace_{name}"))?;
        // A pointer to a function whose first parameter is the tracer's own.
        let pointer = self.get(self.resolve(typedef)?)?;
        let mut parameters = self.prototype(self.resolve(pointer.size_or_type)?)?;
        if parameters.is_empty() {
            return None;
        }
        parameters.remove(0);
        Some(parameters)
    }

    /// The parameters of a function, if the kernel has it as one.
    pub fn function(&self, name: &str) -> Option<Vec<Parameter>> {
        let function = self.get(*self.functions.get(name)?)?;
        self.prototype(self.resolve(function.size_or_type)?)
    }

    /// Bytes of a structure.
    pub fn struct_bytes(&self, name: &str) -> Option<u32> {
        Some(self.get(*self.structs.get(name)?)?.size_or_type)
    }

    fn get(&self, number: u32) -> Option<&Type> {
        self.types.get(number as usize)
    }

    /// The type behind names and qualifiers.
    fn resolve(&self, mut number: u32) -> Option<u32> {
        for _ in 0..32 {
            let of = self.get(number)?;
            match of.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    number = of.size_or_type;
                }
                _ => return Some(number),
            }
        }
        None
    }

    fn prototype(&self, number: u32) -> Option<Vec<Parameter>> {
        let of = self.get(number).filter(|of| of.kind == kind::FUNC_PROTO)?;
        let range = of.first_parameter as usize..(of.first_parameter + of.parameters) as usize;
        let parameter = |&(name, kind): &(u32, u32)| {
            let is_pointer = self.resolve(kind).and_then(|kind| self.get(kind)).is_some_and(|of| of.kind == kind::PTR);
            Parameter { name: string(&self.strings, name), is_pointer }
        };
        Some(self.parameters.get(range)?.iter().map(parameter).collect())
    }
}

fn string(strings: &[u8], at: u32) -> String {
    let rest = strings.get(at as usize..).unwrap_or_default();
    let end = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
    String::from_utf8_lossy(&rest[..end]).into_owned()
}
