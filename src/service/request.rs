//! The requests: one struct of arguments per verb, and JSON for the socket.
//!
//! Refuses to know how they are carried out. Invariant: unknown fields and bad names do not parse.

use super::Mode;
use super::reply::*;
use crate::format::head::{LimitError, check_limit};
use crate::ids::ImageName;
use crate::units::{Bytes, ChunkSize, UnitError, parse_size};
use serde::{Deserialize, Deserializer, Serialize};
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("no verb \"{}\"; there are {}", crate::ids::clip(verb), Request::VERBS.join(", "))]
    UnknownVerb { verb: String },
    #[error("arguments of {verb}")]
    Arguments { verb: &'static str, source: serde_json::Error },
    #[error("{what} {path:?} is not absolute")]
    RelativePath { what: &'static str, path: PathBuf },
    #[error(transparent)]
    Size(#[from] UnitError),
    #[error(transparent)]
    Limit(#[from] LimitError),
    #[error("{0}")]
    Conflict(&'static str),
}

macro_rules! verbs {
    ($($Verb:ident($Reply:ident) = $verb:literal;)*) => {
        /// What is asked: one variant per verb.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Request { $($Verb($Verb)),* }

        /// What came of it: the variant of the request's verb.
        #[derive(Clone, Debug, PartialEq, Eq, Serialize)]
        #[serde(untagged)]
        pub enum Reply { $($Verb($Reply)),* }

        impl Request {
            pub const VERBS: &'static [&'static str] = &[$($verb),*];

            pub fn verb(&self) -> &'static str {
                match self { $(Request::$Verb(_) => $verb),* }
            }

            /// The arguments as JSON. Errors: a path that is not UTF-8.
            pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
                match self { $(Request::$Verb(arguments) => serde_json::to_vec(arguments)),* }
            }

            /// Reads the arguments of `verb` and checks them.
            pub fn from_json(verb: &str, arguments: &[u8]) -> Result<Request, RequestError> {
                let request = match verb {
                    $($verb => serde_json::from_slice(arguments)
                        .map(Request::$Verb)
                        .map_err(|source| RequestError::Arguments { verb: $verb, source })?,)*
                    other => return Err(RequestError::UnknownVerb { verb: other.into() }),
                };
                request.check()?;
                Ok(request)
            }
        }

        impl Reply {
            /// Reads the reply to `verb`; `None` where there is no such verb.
            pub fn from_json(verb: &str, reply: serde_json::Value) -> Option<Result<Reply, serde_json::Error>> {
                match verb {
                    $($verb => Some(serde_json::from_value(reply).map(Reply::$Verb)),)*
                    _ => None,
                }
            }
        }
    };
}

verbs! {
    Create(CreateReply) = "create";
    Import(ImportReply) = "import";
    Clone(CloneReply) = "clone";
    Mount(MountReply) = "mount";
    Umount(UmountReply) = "umount";
    Attach(AttachReply) = "attach";
    Detach(DetachReply) = "detach";
    Commit(CommitReply) = "commit";
    Resize(ResizeReply) = "resize";
    Flatten(FlattenReply) = "flatten";
    Diff(DiffReply) = "diff";
    Export(ExportReply) = "export";
    Info(InfoReply) = "info";
    List(ListReply) = "list";
    Tree(TreeReply) = "tree";
    Check(CheckReply) = "check";
    Rename(RenameReply) = "rename";
    Rm(RmReply) = "rm";
    Gc(GcReply) = "gc";
    Publish(PublishReply) = "publish";
    Pull(PullReply) = "pull";
    Peers(PeersReply) = "peers";
}

macro_rules! arguments {
    ($($(#[$doc:meta])* $Verb:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $Verb { $($(#[$field_doc])* pub $field: $type,)* }
    )*};
}

arguments! {
    /// Makes an empty image.
    Create {
        name: ImageName,
        size_bytes: Bytes,
        #[serde(default)]
        fs: MakeFs,
        /// The most that the head's file may take; absent: what the disk needs.
        #[serde(default)]
        limit_bytes: Option<Bytes>,
        /// The head has all of that space from now on.
        #[serde(default)]
        reserve: bool,
    }
    /// Makes an image from a directory, an archive or a raw disk.
    Import {
        name: ImageName,
        /// Absolute.
        source: PathBuf,
        /// Of the new file system; absent: 10 GiB, or a raw disk's own size.
        #[serde(default)]
        size_bytes: Option<Bytes>,
    }
    /// Makes `target` with the sealed deltas of `source` and an empty head.
    Clone {
        source: ImageName,
        target: ImageName,
        /// As for `create`.
        #[serde(default)]
        limit_bytes: Option<Bytes>,
        #[serde(default)]
        reserve: bool,
    }
    Mount {
        name: ImageName,
        /// Absolute; absent: a directory of the store's run-time directory.
        #[serde(default)]
        dir: Option<PathBuf>,
        #[serde(default)]
        read_only: bool,
        /// Absent: flat where the kernel can, else user.
        #[serde(default)]
        mode: Option<Mode>,
        /// As for `create`, of a head that is made now.
        #[serde(default)]
        limit_bytes: Option<Bytes>,
        #[serde(default)]
        reserve: bool,
    }
    Umount { name: ImageName, }
    Attach {
        name: ImageName,
        #[serde(default)]
        read_only: bool,
        #[serde(default)]
        mode: Option<Mode>,
        /// As for `create`, of a head that is made now.
        #[serde(default)]
        limit_bytes: Option<Bytes>,
        #[serde(default)]
        reserve: bool,
    }
    Detach { name: ImageName, }
    /// Seals the head into a delta.
    Commit {
        name: ImageName,
        #[serde(default)]
        message: Option<String>,
        /// Of the new delta; absent: what suits its place in the chain.
        #[serde(default)]
        chunk_size_bytes: Option<Bytes>,
    }
    /// Makes an image's disk larger or smaller, and the file system on it.
    Resize {
        name: ImageName,
        /// Absent: as it is.
        #[serde(default)]
        size: Option<NewSize>,
        /// The most that the head's file may take; absent: as it is.
        #[serde(default)]
        limit_bytes: Option<Bytes>,
        /// It may take what the disk needs.
        #[serde(default)]
        no_limit: bool,
        /// Whether the head has all of that space from now on; absent: as it is.
        #[serde(default)]
        reserve: Option<bool>,
        /// Cuts off the end of a disk of which nobody knows whether it is in use.
        #[serde(default)]
        shrink: bool,
    }
    /// Makes all sealed deltas but the newest `keep` into one.
    Flatten {
        name: ImageName,
        #[serde(default)]
        keep: usize,
    }
    /// What differs between two images, or between an image's head and its sealed deltas.
    Diff {
        a: ImageName,
        #[serde(default)]
        b: Option<ImageName>,
    }
    Export {
        name: ImageName,
        /// Absolute; its ending says what it becomes.
        target: PathBuf,
    }
    Info {
        name: ImageName,
        /// With the device-mapper tables that the image stands on.
        #[serde(default)]
        dm: bool,
    }
    List {}
    Tree {}
    Check {
        /// Absent: the whole store.
        #[serde(default)]
        name: Option<ImageName>,
        #[serde(default)]
        rebuild: bool,
        /// Mends the heads that can be mended without loss.
        #[serde(default)]
        repair: bool,
    }
    Rename { from: ImageName, to: ImageName, }
    Rm {
        name: ImageName,
        #[serde(default)]
        dry_run: bool,
    }
    Gc {
        #[serde(default)]
        dry_run: bool,
    }
    Publish { name: ImageName, }
    Pull {
        link: String,
        /// Absent: the name in the manifest.
        #[serde(default)]
        name: Option<ImageName>,
        /// Further DHT nodes to ask, as `host:port`.
        #[serde(default)]
        bootstrap: Vec<String>,
        /// How long nothing may come nearer; absent: as long as it takes.
        #[serde(default)]
        timeout_ms: Option<u64>,
        /// Takes a link without the manifest's SHA-256.
        #[serde(default)]
        insecure_sha1: bool,
    }
    Peers {}
}

impl Request {
    /// The image that nobody may have attached meanwhile.
    pub fn changes(&self) -> Option<&ImageName> {
        match self {
            Request::Commit(Commit { name, .. })
            | Request::Resize(Resize { name, .. })
            | Request::Flatten(Flatten { name, .. })
            | Request::Export(Export { name, .. })
            | Request::Check(Check {
                name: Some(name),
                repair: true,
                ..
            })
            | Request::Rename(Rename { from: name, .. })
            | Request::Rm(Rm { name, .. }) => Some(name),
            _ => None,
        }
    }
}

impl Resize {
    fn check(&self) -> Result<(), RequestError> {
        match (self.limit_bytes, self.no_limit) {
            (Some(_), true) => Err(RequestError::Conflict("a limit, and none")),
            (None, false) if self.size.is_none() && self.reserve.is_none() => {
                Err(RequestError::Conflict("want a size, a limit, or whether to reserve its space"))
            }
            _ => Ok(()),
        }
    }
}

/// A size, or how far it is from the one that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NewSize {
    ToBytes(Bytes),
    PlusBytes(Bytes),
    MinusBytes(Bytes),
}

impl NewSize {
    /// Reads `20G`, `+5G` or `-5G`.
    pub fn parse(text: &str) -> Result<NewSize, UnitError> {
        match (text.strip_prefix('+'), text.strip_prefix('-')) {
            (Some(more), _) => parse_size(more).map(NewSize::PlusBytes),
            (_, Some(less)) => parse_size(less).map(NewSize::MinusBytes),
            _ => parse_size(text)?.as_disk_size().map(NewSize::ToBytes),
        }
    }

    /// The size of a disk that has `old` now. Errors: not a disk's size.
    pub fn of(self, old: Bytes) -> Result<Bytes, UnitError> {
        let bytes = match self {
            NewSize::ToBytes(size) => size.0,
            NewSize::PlusBytes(more) => old.0.saturating_add(more.0),
            NewSize::MinusBytes(less) => old.0.saturating_sub(less.0),
        };
        Bytes(bytes).as_disk_size()
    }
}

/// The file system `create` puts on a new image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MakeFs {
    #[default]
    Ext4,
    Xfs,
    None,
}

impl<'de> Deserialize<'de> for MakeFs {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match String::deserialize(from)?.as_str() {
            "ext4" => Ok(MakeFs::Ext4),
            "xfs" => Ok(MakeFs::Xfs),
            "none" => Ok(MakeFs::None),
            other => Err(serde::de::Error::custom(format!(
                "file system \"{}\": want ext4, xfs or none",
                crate::ids::clip(other)
            ))),
        }
    }
}

/// Longest link and commit message that are taken.
pub const MAX_TEXT: usize = 16 << 10;

impl Request {
    /// Whether this only reads and answers at once; such requests do not queue behind long ones.
    pub fn is_quick(&self) -> bool {
        matches!(self, Request::Info(_) | Request::List(_) | Request::Tree(_) | Request::Peers(_))
    }

    /// Whether this has a use for a store that is not there yet. The others find nothing in it, and a mistyped path is to stay what it is.
    pub fn makes_a_store(&self) -> bool {
        matches!(self, Request::Create(_) | Request::Import(_) | Request::Pull(_))
    }

    /// Checks what the types do not say: sizes in range, paths absolute, texts short.
    pub fn check(&self) -> Result<(), RequestError> {
        let absolute = |what, path: &PathBuf| match path.is_absolute() {
            true => Ok(()),
            false => Err(RequestError::RelativePath { what, path: path.clone() }),
        };
        self.check_bounds()?;
        match self {
            Request::Create(create) => {
                create.size_bytes.as_disk_size()?;
            }
            Request::Import(import) => {
                absolute("source", &import.source)?;
                import.size_bytes.map(Bytes::as_disk_size).transpose()?;
            }
            Request::Resize(resize) => resize.check()?,
            Request::Mount(mount) => mount.dir.as_ref().map_or(Ok(()), |dir| absolute("directory", dir))?,
            Request::Export(export) => absolute("target", &export.target)?,
            Request::Commit(commit) => {
                if commit.message.as_ref().is_some_and(|text| text.len() > MAX_TEXT) {
                    return Err(RequestError::Conflict("a message is at most 16 KiB"));
                }
                commit.chunk_size_bytes.map(ChunkSize::new).transpose()?;
            }
            Request::Pull(pull) if pull.link.len() > MAX_TEXT || pull.bootstrap.len() > 64 => {
                return Err(RequestError::Conflict(
                    "a link is at most 16 KiB, and there are at most 64 bootstrap nodes",
                ));
            }
            Request::Clone(clone) if clone.source == clone.target => {
                return Err(RequestError::Conflict("source and target are the same image"));
            }
            Request::Rename(rename) if rename.from == rename.to => {
                return Err(RequestError::Conflict("the old and the new name are the same"));
            }
            _ => {}
        }
        Ok(())
    }

    /// What a head may take, where the verb can make one. (An old head may have another chunk: that is seen when it is resized.)
    fn check_bounds(&self) -> Result<(), RequestError> {
        let (limit, reserve, read_only) = match self {
            Request::Create(ask) => (ask.limit_bytes, ask.reserve, false),
            Request::Clone(ask) => (ask.limit_bytes, ask.reserve, false),
            Request::Attach(ask) => (ask.limit_bytes, ask.reserve, ask.read_only),
            Request::Mount(ask) => (ask.limit_bytes, ask.reserve, ask.read_only),
            _ => return Ok(()),
        };
        if read_only && (limit.is_some() || reserve) {
            return Err(RequestError::Conflict(
                "what is read-only needs no head: neither a limit nor reserved space",
            ));
        }
        Ok(limit.map_or(Ok(()), |limit| check_limit(limit, ChunkSize::HEAD))?)
    }
}

#[cfg(test)]
#[path = "request/tests.rs"]
mod tests;
