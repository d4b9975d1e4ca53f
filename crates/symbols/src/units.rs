//! Entries of DWARF that others refer to: in the same unit, in another one, or in the file that dwz made.

use std::collections::HashMap;
use std::sync::Arc;

use gimli::{AttributeValue, DebugInfoOffset, DebuggingInformationEntry, DwAt, RunTimeEndian, UnitOffset};

pub(crate) type Bytes = gimli::EndianArcSlice<RunTimeEndian>;

/// How many `DW_AT_specification` and `DW_AT_abstract_origin` links an attribute may be away.
pub(crate) const MAX_LINKS: u32 = 16;

/// An entry: its unit, and where it is in that.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) unit: Arc<gimli::Unit<Bytes>>,
    /// The unit is in the file that dwz made.
    pub(crate) supplement: bool,
    pub(crate) at: UnitOffset,
}

impl Place {
    /// The entry itself.
    pub(crate) fn entry(&self) -> Option<DebuggingInformationEntry<Bytes>> {
        self.unit.entry(self.at).ok()
    }
}

/// The units that were needed so far.
#[derive(Default)]
pub(crate) struct Units {
    /// By file and offset.
    units: HashMap<(bool, usize), Option<Arc<gimli::Unit<Bytes>>>>,
    /// Offsets of all units, sorted; of the module and of its dwz file.
    offsets: [Option<Vec<usize>>; 2],
}

/// The file that a unit is in.
pub(crate) fn file(dwarf: &gimli::Dwarf<Bytes>, supplement: bool) -> Option<&gimli::Dwarf<Bytes>> {
    if supplement { dwarf.sup() } else { Some(dwarf) }
}

impl Units {
    /// The offsets of all units of the file `dwarf`, in their order.
    pub(crate) fn offsets(&mut self, dwarf: &gimli::Dwarf<Bytes>, supplement: bool) -> &[usize] {
        self.offsets[usize::from(supplement)].get_or_insert_with(|| {
            let mut offsets = Vec::new();
            let mut units = dwarf.units();
            while let Ok(Some(header)) = units.next() {
                offsets.extend(header.debug_info_offset().map(|offset| offset.0));
            }
            offsets
        })
    }

    /// The unit that begins at an offset into the file `dwarf`.
    pub(crate) fn unit(
        &mut self,
        dwarf: &gimli::Dwarf<Bytes>,
        supplement: bool,
        start: usize,
    ) -> Option<Arc<gimli::Unit<Bytes>>> {
        let unit = self.units.entry((supplement, start)).or_insert_with(|| {
            let header = dwarf.unit_header(DebugInfoOffset(start)).ok()?;
            Some(Arc::new(dwarf.unit(header).ok()?))
        });
        unit.clone()
    }

    /// The entry at an offset into the file `dwarf`.
    pub(crate) fn place_in(
        &mut self,
        dwarf: &gimli::Dwarf<Bytes>,
        supplement: bool,
        target: DebugInfoOffset,
    ) -> Option<Place> {
        let offsets = self.offsets(dwarf, supplement);
        let start = *offsets.get(offsets.partition_point(|&offset| offset <= target.0).checked_sub(1)?)?;
        let unit = self.unit(dwarf, supplement, start)?;
        let at = target.to_unit_offset(&unit.header)?;
        Some(Place { unit, supplement, at })
    }

    /// The entry that an attribute of another one refers to.
    pub(crate) fn follow(
        &mut self,
        dwarf: &gimli::Dwarf<Bytes>,
        from: &Place,
        reference: AttributeValue<Bytes>,
    ) -> Option<Place> {
        match reference {
            AttributeValue::UnitRef(at) => Some(Place { at, ..from.clone() }),
            AttributeValue::DebugInfoRef(offset) => {
                self.place_in(file(dwarf, from.supplement)?, from.supplement, offset)
            }
            AttributeValue::DebugInfoRefSup(offset) => self.place_in(dwarf.sup()?, true, offset),
            _ => None,
        }
    }

    /// An attribute of an entry or of what it is an instance of, and where it stands.
    pub(crate) fn inherited(
        &mut self,
        dwarf: &gimli::Dwarf<Bytes>,
        from: &Place,
        name: DwAt,
    ) -> Option<(Place, AttributeValue<Bytes>)> {
        let mut place = from.clone();
        for _ in 0..MAX_LINKS {
            let entry = place.entry()?;
            if let Some(value) = entry.attr_value(name) {
                return Some((place, value));
            }
            let origin = entry
                .attr_value(gimli::DW_AT_abstract_origin)
                .or_else(|| entry.attr_value(gimli::DW_AT_specification))?;
            place = self.follow(dwarf, &place, origin)?;
        }
        None
    }
}
