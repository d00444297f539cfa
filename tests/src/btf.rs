//! Reads the BTF of a BPF object: which struct a map's key and value are, member by member.
//!
//! A reader of its own, after `Documentation/bpf/btf.rst`, so that the layout it reports owes nothing
//! to the code that loads the object.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use object::{Object as _, ObjectSection as _};

const MAGIC: u16 = 0xeb9f;

/// The types of an object, by their number; 0 is void.
#[derive(Debug)]
pub struct Btf {
    types: Vec<Type>,
}

/// A map as the object declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapTypes {
    /// A number of `enum bpf_map_type`.
    pub kind: u32,
    pub key: u32,
    pub value: u32,
    pub max_entries: u32,
}

/// A member of a struct.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub name: String,
    pub offset: usize,
    pub size: usize,
    pub type_id: u32,
}

#[derive(Debug)]
enum Type {
    /// Integers, enums and floats.
    Scalar {
        size: usize,
    },
    Pointer {
        to: u32,
    },
    Array {
        element: u32,
        count: u32,
    },
    Struct {
        name: String,
        size: usize,
        members: Vec<(String, u32, u32)>,
    },
    /// Typedefs and qualifiers.
    Alias {
        of: u32,
    },
    Var {
        name: String,
        of: u32,
    },
    /// Types no map is made of.
    Other,
}

impl Btf {
    /// Reads the `.BTF` section of an ELF object.
    pub fn of_object(elf: &[u8]) -> Result<Self> {
        let file = object::File::parse(elf).context("parse the ELF object")?;
        let section = file
            .section_by_name(".BTF")
            .context("the object has no .BTF section")?;
        Self::parse(section.data()?)
    }

    fn parse(data: &[u8]) -> Result<Self> {
        let mut header = Reader(data);
        let magic_version_flags = header.word()?;
        ensure!(
            magic_version_flags & 0xffff == u32::from(MAGIC),
            "not little-endian BTF"
        );
        let header_len = header.word()? as usize;
        let [type_off, type_len, str_off, str_len] = [
            header.word()?,
            header.word()?,
            header.word()?,
            header.word()?,
        ]
        .map(|n| n as usize);
        let body = data.get(header_len..).context("BTF header")?;
        let strings = body
            .get(str_off..str_off + str_len)
            .context("BTF strings")?;
        let mut reader = Reader(
            body.get(type_off..type_off + type_len)
                .context("BTF types")?,
        );
        let mut types = vec![Type::Other];
        while !reader.0.is_empty() {
            types.push(read_type(&mut reader, strings)?);
        }
        Ok(Self { types })
    }

    /// The maps of the `.maps` section: the global variables whose type has a key and a value.
    pub fn maps(&self) -> Result<BTreeMap<String, MapTypes>> {
        let mut maps = BTreeMap::new();
        for ty in &self.types {
            let Type::Var { name, of } = ty else { continue };
            let Ok(members) = self.members(*of) else {
                continue;
            };
            let pointee = |wanted: &str| {
                let member = members.iter().find(|member| member.name == wanted)?;
                match self.get(member.type_id).ok()? {
                    Type::Pointer { to } => Some(*to),
                    _ => None,
                }
            };
            // A number is declared as a pointer to an array of that length.
            let number = |wanted: &str| match self.get(pointee(wanted)?).ok()? {
                Type::Array { count, .. } => Some(*count),
                _ => None,
            };
            let (Some(kind), Some(key), Some(value), Some(max_entries)) = (
                number("type"),
                pointee("key"),
                pointee("value"),
                number("max_entries"),
            ) else {
                continue;
            };
            maps.insert(
                name.clone(),
                MapTypes {
                    kind,
                    key,
                    value,
                    max_entries,
                },
            );
        }
        Ok(maps)
    }

    /// Size of a type in bytes.
    pub fn size(&self, id: u32) -> Result<usize> {
        Ok(match self.get(id)? {
            Type::Scalar { size } | Type::Struct { size, .. } => *size,
            Type::Pointer { .. } => 8,
            Type::Array { element, count } => self.size(*element)? * *count as usize,
            Type::Alias { of } | Type::Var { of, .. } => self.size(*of)?,
            Type::Other => bail!("type {id} has no size"),
        })
    }

    /// Name of the struct that `id` is, or that it is an array of; `None` for scalars.
    pub fn struct_name(&self, id: u32) -> Result<Option<&str>> {
        Ok(match self.get(id)? {
            Type::Struct { name, .. } => Some(name),
            Type::Array { element: of, .. } | Type::Alias { of } => self.struct_name(*of)?,
            _ => None,
        })
    }

    /// What an array is made of, or the type itself.
    pub fn element(&self, id: u32) -> Result<u32> {
        match self.get(id)? {
            Type::Array { element: of, .. } | Type::Alias { of } => self.element(*of),
            _ => Ok(id),
        }
    }

    /// The members of the struct that `id` is, or that it is an array of.
    pub fn members(&self, id: u32) -> Result<Vec<Member>> {
        match self.get(id)? {
            Type::Struct { members, .. } => members
                .iter()
                .map(|(name, type_id, bit_offset)| {
                    Ok(Member {
                        name: name.clone(),
                        offset: *bit_offset as usize / 8,
                        size: self.size(*type_id)?,
                        type_id: *type_id,
                    })
                })
                .collect(),
            Type::Array { element: of, .. } | Type::Alias { of } => self.members(*of),
            other => bail!("type {id} is no struct: {other:?}"),
        }
    }

    fn get(&self, id: u32) -> Result<&Type> {
        self.types
            .get(id as usize)
            .with_context(|| format!("no type {id}"))
    }
}

/// Reads one `struct btf_type` and what follows it.
fn read_type(reader: &mut Reader<'_>, strings: &[u8]) -> Result<Type> {
    let name = string(strings, reader.word()?)?;
    let info = reader.word()?;
    let size_or_type = reader.word()?;
    let (kind, vlen) = (info >> 24 & 0x1f, info & 0xffff);
    Ok(match kind {
        // INT
        1 => {
            reader.skip(4)?;
            Type::Scalar {
                size: size_or_type as usize,
            }
        }
        // PTR
        2 => Type::Pointer { to: size_or_type },
        // ARRAY
        3 => {
            let element = reader.word()?;
            reader.skip(4)?;
            Type::Array {
                element,
                count: reader.word()?,
            }
        }
        // STRUCT
        4 => {
            let mut members = Vec::new();
            for _ in 0..vlen {
                let name = string(strings, reader.word()?)?;
                members.push((name, reader.word()?, reader.word()?));
            }
            Type::Struct {
                name,
                size: size_or_type as usize,
                members,
            }
        }
        // ENUM, ENUM64
        6 | 19 => {
            reader.skip(vlen * if kind == 6 { 8 } else { 12 })?;
            Type::Scalar {
                size: size_or_type as usize,
            }
        }
        // TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG
        8..=11 | 18 => Type::Alias { of: size_or_type },
        // VAR
        14 => {
            reader.skip(4)?;
            Type::Var {
                name,
                of: size_or_type,
            }
        }
        // FLOAT
        16 => Type::Scalar {
            size: size_or_type as usize,
        },
        // UNION, DATASEC
        5 | 15 => {
            reader.skip(vlen * 12)?;
            Type::Other
        }
        // FUNC_PROTO
        13 => {
            reader.skip(vlen * 8)?;
            Type::Other
        }
        // FWD, FUNC
        7 | 12 => Type::Other,
        // DECL_TAG
        17 => {
            reader.skip(4)?;
            Type::Other
        }
        other => bail!("unknown BTF kind {other}"),
    })
}

fn string(strings: &[u8], offset: u32) -> Result<String> {
    let bytes = strings.get(offset as usize..).context("BTF string")?;
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .context("unterminated BTF string")?;
    Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

/// Takes little-endian words off the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn word(&mut self) -> Result<u32> {
        let (word, rest) = self.0.split_first_chunk().context("truncated BTF")?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*word))
    }

    fn skip(&mut self, bytes: u32) -> Result<()> {
        self.0 = self.0.get(bytes as usize..).context("truncated BTF")?;
        Ok(())
    }
}
