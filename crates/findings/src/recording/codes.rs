//! The shared vocabulary as numbers, for serde.

macro_rules! code {
    ($module:ident, $type:ty) => {
        pub(crate) mod $module {
            use serde::{Deserialize, Deserializer, Serializer, de::Error};

            pub(crate) fn serialize<S: Serializer>(value: &$type, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_u8(*value as u8)
            }

            pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<$type, D::Error> {
                let number = u8::deserialize(from)?;
                <$type>::from_u8(number).ok_or_else(|| D::Error::custom("unknown number"))
            }
        }
    };
}

code!(alloc_fn, leakscope_model::AllocFn);
code!(misuse_kind, leakscope_model::MisuseKind);
code!(leak_kind, leakscope_model::LeakKind);
code!(check_trigger, leakscope_model::CheckTrigger);
code!(tool, leakscope_model::Tool);
code!(error_kind, leakscope_model::ErrorKind);

/// `Option<Heuristic>` as its number plus one.
pub(crate) mod heuristic {
    use leakscope_model::Heuristic;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(value: &Option<Heuristic>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u8(value.map_or(0, |heuristic| heuristic as u8 + 1))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Heuristic>, D::Error> {
        match u8::deserialize(from)? {
            0 => Ok(None),
            number => Heuristic::from_u8(number - 1).map(Some).ok_or_else(|| D::Error::custom("unknown number")),
        }
    }
}
