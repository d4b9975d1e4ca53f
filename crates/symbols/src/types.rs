//! Types of variables: how large they are, and which part of one lies at an offset.
//!
//! Source: DWARF 5, chapter 5. The parts are written as in the source of the program, and as Memcheck does with
//! `--read-var-info=yes`: `[3].field`.

use std::fmt::Write as _;

use gimli::{AttributeValue, DwTag, Reader};

use crate::units::{Bytes, Place, Units, file};

/// Types in types in types: more than a program has, and an end for types that contain themselves.
const MAX_DEPTH: u32 = 64;

/// An unsigned number, however it was written.
pub(crate) fn number(value: &AttributeValue<Bytes>) -> Option<u64> {
    value.udata_value().or_else(|| value.sdata_value().and_then(|value| u64::try_from(value).ok()))
}

/// A name, or another string.
pub(crate) fn text(dwarf: &gimli::Dwarf<Bytes>, place: &Place, value: AttributeValue<Bytes>) -> Option<String> {
    let bytes = file(dwarf, place.supplement)?.attr_string(&place.unit, value).ok()?;
    Some(bytes.to_string_lossy().ok()?.into_owned())
}

/// The types of one module.
pub(crate) struct Types<'a> {
    pub(crate) dwarf: &'a gimli::Dwarf<Bytes>,
    pub(crate) units: &'a mut Units,
}

/// Another name for the type, or a way to use it.
fn is_alias(tag: DwTag) -> bool {
    matches!(
        tag,
        gimli::DW_TAG_typedef
            | gimli::DW_TAG_const_type
            | gimli::DW_TAG_volatile_type
            | gimli::DW_TAG_restrict_type
            | gimli::DW_TAG_atomic_type
            | gimli::DW_TAG_subrange_type
    )
}

impl Types<'_> {
    /// The type of a variable, a member or another type.
    pub(crate) fn of(&mut self, place: &Place) -> Option<Place> {
        let (place, value) = self.units.inherited(self.dwarf, place, gimli::DW_AT_type)?;
        self.units.follow(self.dwarf, &place, value)
    }

    /// The bytes of a type; `None` when they are not known.
    pub(crate) fn size(&mut self, place: &Place) -> Option<u64> {
        self.size_within(place, MAX_DEPTH)
    }

    fn size_within(&mut self, place: &Place, depth: u32) -> Option<u64> {
        let depth = depth.checked_sub(1)?;
        let entry = place.entry()?;
        if let Some(size) = entry.attr_value(gimli::DW_AT_byte_size).as_ref().and_then(number) {
            return Some(size);
        }
        match entry.tag() {
            gimli::DW_TAG_pointer_type | gimli::DW_TAG_reference_type | gimli::DW_TAG_rvalue_reference_type => {
                Some(place.unit.encoding().address_size.into())
            }
            gimli::DW_TAG_array_type => {
                let of = self.of(place)?;
                let element = self.size_within(&of, depth)?;
                dimensions(place)?.iter().try_fold(element, |size, &count| size.checked_mul(count))
            }
            tag if is_alias(tag) || tag == gimli::DW_TAG_enumeration_type => {
                let of = self.of(place)?;
                self.size_within(&of, depth)
            }
            _ => None,
        }
    }

    /// The part of a type at an offset, as the source writes it, and how far into that part the offset is.
    pub(crate) fn part(&mut self, place: Place, offset: u64) -> (String, u64) {
        let (mut words, mut offset, mut place) = (String::new(), offset, place);
        for _ in 0..MAX_DEPTH {
            let Some(next) = self.step(&place, &mut offset, &mut words) else { break };
            place = next;
        }
        (words, offset)
    }

    /// One step into a type.
    fn step(&mut self, place: &Place, offset: &mut u64, words: &mut String) -> Option<Place> {
        match place.entry()?.tag() {
            gimli::DW_TAG_structure_type | gimli::DW_TAG_class_type => {
                let (member, start) = self.member(place, *offset)?;
                let entry = member.entry()?;
                // What has no name (a base class, an anonymous structure) is looked into all the same.
                if let Some(name) = entry.attr_value(gimli::DW_AT_name)
                    && let Some(name) = text(self.dwarf, &member, name)
                {
                    _ = write!(words, ".{name}");
                }
                *offset -= start;
                self.of(&member)
            }
            gimli::DW_TAG_array_type => {
                let counts = dimensions(place)?;
                let of = self.of(place)?;
                let element = self.size(&of).filter(|&bytes| bytes > 0)?;
                for number in 0..counts.len() {
                    let stride =
                        counts[number + 1..].iter().try_fold(element, |size, &count| size.checked_mul(count))?;
                    let index = offset.checked_div(stride)?;
                    _ = write!(words, "[{index}]");
                    *offset -= index * stride;
                }
                Some(of)
            }
            tag if is_alias(tag) => self.of(place),
            _ => None,
        }
    }

    /// The member or base class of a structure that holds an offset, and where it begins.
    fn member(&mut self, place: &Place, offset: u64) -> Option<(Place, u64)> {
        let mut cursor = place.unit.entries_at_offset(place.at).ok()?;
        cursor.next_dfs().ok()??;
        let mut members = Vec::new();
        while let Ok(Some(entry)) = cursor.next_dfs() {
            if entry.depth() <= 0 {
                break;
            }
            let is_member = matches!(entry.tag(), gimli::DW_TAG_member | gimli::DW_TAG_inheritance);
            if entry.depth() == 1 && is_member {
                let start = entry.attr_value(gimli::DW_AT_data_member_location).as_ref().and_then(number);
                members.extend(start.map(|start| (entry.offset(), start)));
            }
        }
        members.into_iter().find_map(|(at, start)| {
            let member = Place { at, ..place.clone() };
            let of = self.of(&member)?;
            let size = self.size(&of)?;
            (start <= offset && offset - start < size).then_some((member, start))
        })
    }
}

/// How many elements an array has in each of its dimensions; `None` when that is not known or they do not begin at 0.
fn dimensions(place: &Place) -> Option<Vec<u64>> {
    let mut cursor = place.unit.entries_at_offset(place.at).ok()?;
    cursor.next_dfs().ok()??;
    let mut counts = Vec::new();
    while let Ok(Some(entry)) = cursor.next_dfs() {
        if entry.depth() <= 0 {
            break;
        }
        if entry.depth() != 1 || entry.tag() != gimli::DW_TAG_subrange_type {
            continue;
        }
        if entry.attr_value(gimli::DW_AT_lower_bound).as_ref().and_then(number).unwrap_or(0) != 0 {
            return None;
        }
        let count = match entry.attr_value(gimli::DW_AT_count).as_ref().and_then(number) {
            Some(count) => count,
            None => entry.attr_value(gimli::DW_AT_upper_bound).as_ref().and_then(number)?.checked_add(1)?,
        };
        counts.push(count);
    }
    (!counts.is_empty()).then_some(counts)
}
