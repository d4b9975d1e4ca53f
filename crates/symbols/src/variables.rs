//! Variables that lie at an address: global ones by DWARF's fixed addresses, local ones by a frame of a stack.
//!
//! Read only when somebody asks, with sections of their own: they are half of the debug information, and names of
//! functions never need them. Split units are not looked into. Source: DWARF 5, sections 2.5, 2.6 and 4.1.

use std::sync::Arc;

use gimli::{AttributeValue, DebuggingInformationEntry, EvaluationResult, Expression, Location, Register, Value};

use crate::elf::Elf;
use crate::types::{Types, number, text};
use crate::units::{Bytes, Place, Units, file};

/// A variable around an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// The part of it at the address, as the source writes it: `[3].field`; empty when it has no parts.
    pub part: String,
    /// Bytes from the part's start to the address.
    pub offset_in_part: u64,
    /// Bytes from the variable's start to the address.
    pub offset: u64,
    /// Name of the source file that declares it.
    pub file: Option<String>,
    /// The line there.
    pub line: Option<u32>,
    /// First address of the variable, and one past the last.
    pub extent: (u64, u64),
}

/// What is known of a frame of a stack, for its local variables; addresses are those of run time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameState {
    /// The canonical frame address.
    pub cfa: u64,
    /// rbp, or what serves as such.
    pub frame_pointer: u64,
    /// rsp.
    pub stack_pointer: u64,
}

const FRAME_POINTER: Register = Register(6);
const STACK_POINTER: Register = Register(7);

/// More expressions in expressions than compilers write.
const MAX_STEPS: u32 = 1000;

/// A variable with a fixed address.
struct Global {
    start: u64,
    end: u64,
    place: Place,
}

/// The variables of one module.
pub(crate) struct Variables {
    dwarf: gimli::Dwarf<Bytes>,
    units: Units,
    globals: Option<Vec<Global>>,
    /// Ranges of code and the offsets of the units that they belong to.
    ranges: Option<Vec<(u64, u64, usize)>>,
}

fn load(elf: &Elf) -> Option<gimli::Dwarf<Bytes>> {
    let section = |id: gimli::SectionId| Bytes::new(elf.debug_section(id.name()).unwrap_or_default(), elf.endian);
    gimli::Dwarf::load(|id| Ok::<_, ()>(section(id))).ok()
}

/// What an expression may ask for.
#[derive(Clone, Copy)]
struct Situation<'a> {
    dwarf: &'a gimli::Dwarf<Bytes>,
    unit: &'a gimli::Unit<Bytes>,
    frame: Option<FrameState>,
    /// Added to addresses that the linker knew.
    bias: u64,
    frame_base: Option<u64>,
}

impl Variables {
    /// Reads a file's sections.
    pub(crate) fn load(elf: &Elf, supplement: Option<&Elf>) -> Option<Self> {
        let mut dwarf = load(elf)?;
        if let Some(supplement) = supplement {
            dwarf.set_sup(load(supplement)?);
        }
        dwarf.populate_abbreviations_cache(gimli::AbbreviationsCacheStrategy::Duplicates);
        Some(Self { dwarf, units: Units::default(), globals: None, ranges: None })
    }

    /// The global or static variable at an address of link time.
    pub(crate) fn global(&mut self, address: u64) -> Option<Variable> {
        if self.globals.is_none() {
            self.globals = Some(self.all_globals());
        }
        let globals = self.globals.as_deref()?;
        let found = globals.iter().find(|global| global.start <= address && address < global.end)?;
        let (place, start, end) = (found.place.clone(), found.start, found.end);
        self.describe(&place, address, start, end)
    }

    fn all_globals(&mut self) -> Vec<Global> {
        let mut globals = Vec::new();
        let offsets = self.units.offsets(&self.dwarf, false).to_vec();
        for offset in offsets {
            let Some(unit) = self.units.unit(&self.dwarf, false, offset) else { continue };
            let mut cursor = unit.entries();
            while let Ok(Some(entry)) = cursor.next_dfs() {
                if entry.tag() != gimli::DW_TAG_variable {
                    continue;
                }
                let Some(AttributeValue::Exprloc(expression)) = entry.attr_value(gimli::DW_AT_location) else {
                    continue;
                };
                let situation = Situation { dwarf: &self.dwarf, unit: &unit, frame: None, bias: 0, frame_base: None };
                let Some(start) = situation.address(expression).filter(|&start| start != 0) else { continue };
                let place = Place { unit: Arc::clone(&unit), supplement: false, at: entry.offset() };
                if let Some(size) = self.size(&place) {
                    globals.push(Global { start, end: start.saturating_add(size), place });
                }
            }
        }
        globals
    }

    fn size(&mut self, variable: &Place) -> Option<u64> {
        let mut types = Types { dwarf: &self.dwarf, units: &mut self.units };
        let of = types.of(variable)?;
        types.size(&of).filter(|&size| size > 0)
    }

    /// The local variable or parameter at an address of run time, of the function around `pc` (of link time; the
    /// instruction itself, or the byte before the return address). Of several the one of the innermost scope.
    pub(crate) fn local(&mut self, pc: u64, frame: FrameState, bias: u64, address: u64) -> Option<Variable> {
        let found = self.locals(pc, frame, bias);
        let (place, start, end) = found.into_iter().rev().find(|&(_, start, end)| start <= address && address < end)?;
        self.describe(&place, address, start, end)
    }

    /// The variables of a function with their ranges, those of inner scopes behind those of outer ones.
    fn locals(&mut self, pc: u64, frame: FrameState, bias: u64) -> Vec<(Place, u64, u64)> {
        let Some(unit) = self.unit_around(pc) else { return Vec::new() };
        let mut found: Vec<(isize, Place, u64)> = Vec::new();
        let mut situation = Situation { dwarf: &self.dwarf, unit: &unit, frame: Some(frame), bias, frame_base: None };
        let (mut skipped, mut function) = (None, None);
        let mut cursor = unit.entries();
        while let Ok(Some(entry)) = cursor.next_dfs() {
            let depth = entry.depth();
            if skipped.is_some_and(|skipped| depth > skipped) {
                continue;
            }
            skipped = None;
            if function.is_some_and(|function| depth <= function) {
                function = None;
            }
            match entry.tag() {
                gimli::DW_TAG_subprogram | gimli::DW_TAG_lexical_block | gimli::DW_TAG_inlined_subroutine => {
                    if !situation.covers(entry, pc) {
                        skipped = Some(depth);
                    } else if entry.tag() == gimli::DW_TAG_subprogram {
                        function = Some(depth);
                        situation.frame_base = None;
                        let base = entry.attr_value(gimli::DW_AT_frame_base);
                        situation.frame_base = base.and_then(|base| situation.frame_base(base, pc));
                    }
                }
                gimli::DW_TAG_variable | gimli::DW_TAG_formal_parameter if function.is_some() => {
                    let location = entry.attr_value(gimli::DW_AT_location);
                    if let Some(start) = location.and_then(|location| situation.located(location, pc)) {
                        let place = Place { unit: Arc::clone(&unit), supplement: false, at: entry.offset() };
                        found.push((depth, place, start));
                    }
                }
                _ => {}
            }
        }
        found.sort_by_key(|&(depth, ..)| depth);
        let mut sized = Vec::new();
        for (_, place, start) in found {
            if let Some(size) = self.size(&place) {
                sized.push((place, start, start.saturating_add(size)));
            }
        }
        sized
    }

    /// Where the variables of a function lie that depend on nothing but the canonical frame address: first byte and one
    /// past the last, relative to that address.
    pub(crate) fn frame(&mut self, pc: u64, frame: FrameState, bias: u64) -> Vec<(i64, i64)> {
        const AWAY: u64 = 1 << 32;
        // The usual frame pointer stands at a fixed distance.
        let is_usual = frame.frame_pointer == frame.cfa.wrapping_sub(16);
        let elsewhere = FrameState {
            cfa: frame.cfa.wrapping_add(AWAY),
            frame_pointer: frame.frame_pointer.wrapping_add(if is_usual { AWAY } else { 3 * AWAY }),
            stack_pointer: frame.stack_pointer.wrapping_add(5 * AWAY),
        };
        let (here, there) = (self.locals(pc, frame, bias), self.locals(pc, elsewhere, bias));
        let moved = |&(_, start, end): &(Place, u64, u64)| {
            there.iter().any(|other| other.1 == start.wrapping_add(AWAY) && other.2 == end.wrapping_add(AWAY))
        };
        let relative = |address: u64| address.wrapping_sub(frame.cfa) as i64;
        here.iter().filter(|found| moved(found)).map(|(_, start, end)| (relative(*start), relative(*end))).collect()
    }

    fn unit_around(&mut self, pc: u64) -> Option<Arc<gimli::Unit<Bytes>>> {
        if self.ranges.is_none() {
            let mut ranges = Vec::new();
            for offset in self.units.offsets(&self.dwarf, false).to_vec() {
                let Some(unit) = self.units.unit(&self.dwarf, false, offset) else { continue };
                let Ok(mut of_unit) = self.dwarf.unit_ranges(&unit) else { continue };
                while let Ok(Some(range)) = of_unit.next() {
                    ranges.push((range.begin, range.end, offset));
                }
            }
            self.ranges = Some(ranges);
        }
        let holds = |&&(begin, end, _): &&(u64, u64, usize)| begin <= pc && pc < end;
        let &(_, _, offset) = self.ranges.as_deref()?.iter().find(holds)?;
        self.units.unit(&self.dwarf, false, offset)
    }

    fn describe(&mut self, place: &Place, address: u64, start: u64, end: u64) -> Option<Variable> {
        let (named, name) = self.units.inherited(&self.dwarf, place, gimli::DW_AT_name)?;
        let name = text(&self.dwarf, &named, name)?;
        let line = self.units.inherited(&self.dwarf, place, gimli::DW_AT_decl_line);
        let line = line.and_then(|(_, line)| u32::try_from(number(&line)?).ok());
        let file = self
            .units
            .inherited(&self.dwarf, place, gimli::DW_AT_decl_file)
            .and_then(|(place, value)| self.file_name(&place, &value));
        let offset = address - start;
        let mut types = Types { dwarf: &self.dwarf, units: &mut self.units };
        let (part, offset_in_part) = match types.of(place) {
            Some(of) => types.part(of, offset),
            None => (String::new(), offset),
        };
        Some(Variable { name, part, offset_in_part, offset, file, line, extent: (start, end) })
    }

    fn file_name(&self, place: &Place, value: &AttributeValue<Bytes>) -> Option<String> {
        let index = match value {
            AttributeValue::FileIndex(index) => *index,
            other => number(other)?,
        };
        let header = place.unit.line_program.as_ref()?.header();
        let name = header.file(index)?.path_name();
        let bytes = file(&self.dwarf, place.supplement)?.attr_string(&place.unit, name).ok()?;
        let name = gimli::Reader::to_string_lossy(&bytes).ok()?;
        Some(name.rsplit('/').next().unwrap_or(&name).to_owned())
    }
}

impl Situation<'_> {
    /// Whether an entry's code has an address.
    fn covers(&self, entry: &DebuggingInformationEntry<Bytes>, pc: u64) -> bool {
        let Ok(mut ranges) = self.dwarf.die_ranges(self.unit, entry) else { return false };
        while let Ok(Some(range)) = ranges.next() {
            if (range.begin..range.end).contains(&pc) {
                return true;
            }
        }
        false
    }

    /// The expression that an attribute holds for `pc`.
    fn expression(&self, location: AttributeValue<Bytes>, pc: u64) -> Option<Expression<Bytes>> {
        if let AttributeValue::Exprloc(expression) = location {
            return Some(expression);
        }
        let mut list = self.dwarf.attr_locations(self.unit, location).ok()??;
        while let Ok(Some(entry)) = list.next() {
            if (entry.range.begin..entry.range.end).contains(&pc) {
                return Some(entry.data);
            }
        }
        None
    }

    /// The address that a location gives for `pc`.
    fn located(&self, location: AttributeValue<Bytes>, pc: u64) -> Option<u64> {
        self.address(self.expression(location, pc)?)
    }

    /// The frame base: an address, or what a register holds.
    fn frame_base(&self, base: AttributeValue<Bytes>, pc: u64) -> Option<u64> {
        match self.evaluate(self.expression(base, pc)?)? {
            Location::Address { address } => Some(address),
            Location::Register { register } => self.register(register),
            _ => None,
        }
    }

    fn register(&self, register: Register) -> Option<u64> {
        match register {
            FRAME_POINTER => Some(self.frame?.frame_pointer),
            STACK_POINTER => Some(self.frame?.stack_pointer),
            _ => None,
        }
    }

    /// The address that an expression gives; `None` for what is in a register, in pieces, or nowhere.
    fn address(&self, expression: Expression<Bytes>) -> Option<u64> {
        match self.evaluate(expression)? {
            Location::Address { address } => Some(address),
            _ => None,
        }
    }

    fn evaluate(&self, expression: Expression<Bytes>) -> Option<Location<Bytes>> {
        let mut evaluation = expression.evaluation(self.unit.encoding());
        evaluation.set_max_iterations(MAX_STEPS);
        let mut state = evaluation.evaluate().ok()?;
        for _ in 0..MAX_STEPS {
            state = match state {
                EvaluationResult::Complete => {
                    return match evaluation.as_result() {
                        [piece] if piece.size_in_bits.is_none() => Some(piece.location.clone()),
                        _ => None,
                    };
                }
                EvaluationResult::RequiresRegister { register, .. } => {
                    evaluation.resume_with_register(Value::Generic(self.register(register)?)).ok()?
                }
                EvaluationResult::RequiresFrameBase => evaluation.resume_with_frame_base(self.frame_base?).ok()?,
                EvaluationResult::RequiresCallFrameCfa => {
                    evaluation.resume_with_call_frame_cfa(self.frame?.cfa).ok()?
                }
                EvaluationResult::RequiresRelocatedAddress(address) => {
                    evaluation.resume_with_relocated_address(address.wrapping_add(self.bias)).ok()?
                }
                EvaluationResult::RequiresIndexedAddress { index, relocate } => {
                    let address = self.dwarf.address(self.unit, index).ok()?;
                    let bias = if relocate { self.bias } else { 0 };
                    evaluation.resume_with_indexed_address(address.wrapping_add(bias)).ok()?
                }
                _ => return None,
            };
        }
        None
    }
}
