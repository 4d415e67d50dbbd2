//! Vectors: the answer of a model to a text.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A vector, the writer's own or lent by the record that it was read from. It crosses a topic as little-endian bytes: a
/// quarter of the cost of a MessagePack array, and exact.
#[derive(Clone)]
pub struct Embedding<'a>(Values<'a>);

#[derive(Clone)]
enum Values<'a> {
    Own(Vec<f32>),
    Lent(&'a [[u8; 4]]),
}

impl Embedding<'_> {
    /// How many dimensions it has.
    pub fn len(&self) -> usize {
        match &self.0 {
            Values::Own(values) => values.len(),
            Values::Lent(values) => values.len(),
        }
    }

    /// Whether it has no dimension.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts its values behind those in `values`.
    pub fn append_to(&self, values: &mut Vec<f32>) {
        match &self.0 {
            Values::Own(own) => values.extend_from_slice(own),
            Values::Lent(lent) => values.extend(lent.iter().map(|value| f32::from_le_bytes(*value))),
        }
    }
}

impl From<Vec<f32>> for Embedding<'_> {
    fn from(values: Vec<f32>) -> Self {
        Self(Values::Own(values))
    }
}

impl PartialEq for Embedding<'_> {
    fn eq(&self, other: &Self) -> bool {
        let [mut one, mut two] = [Vec::new(), Vec::new()];
        self.append_to(&mut one);
        other.append_to(&mut two);
        one == two
    }
}

impl fmt::Debug for Embedding<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut values = Vec::new();
        self.append_to(&mut values);
        values.fmt(f)
    }
}

impl Serialize for Embedding<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Values::Own(values) if cfg!(target_endian = "little") => {
                serializer.serialize_bytes(bytemuck::cast_slice(values))
            }
            Values::Own(values) => {
                let bytes: Vec<[u8; 4]> = values.iter().map(|value| value.to_le_bytes()).collect();
                serializer.serialize_bytes(bytes.as_flattened())
            }
            Values::Lent(values) => serializer.serialize_bytes(values.as_flattened()),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Embedding<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Embedding<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("little-endian 32-bit floats")
            }

            fn visit_borrowed_bytes<E: de::Error>(self, bytes: &'de [u8]) -> Result<Embedding<'de>, E> {
                match bytes.as_chunks::<4>() {
                    (values, []) => Ok(Embedding(Values::Lent(values))),
                    _ => Err(E::invalid_length(bytes.len(), &self)),
                }
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}
