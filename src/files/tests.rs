//! Archives made by hand, byte by byte, against a directory in a tempdir with a canary beside it.

mod build;
mod hostile;
#[cfg(feature = "root-tests")]
mod round_trip;

use super::beneath::open_root;
use super::{FilesError, Source, SourceError, Stats, source, tar_in, tar_out};
use build::Tar;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use tempfile::TempDir;

/// `root` to import into, and beside it a canary that nothing may touch.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("canary")).unwrap();
        fs::write(dir.path().join("canary/bird"), "alive").unwrap();
        Place { dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn import(&self, bytes: &[u8]) -> Result<Stats, FilesError> {
        tar_in::import(bytes, &open_root(&self.root()).unwrap(), &mut |_, _| {})
    }

    fn export(&self) -> Vec<u8> {
        let mut out = Vec::new();
        tar_out::export(&open_root(&self.root()).unwrap(), &mut out, &mut |_, _| {}).unwrap();
        out
    }

    /// The canary and the place itself hold what they did, and nothing more.
    fn assert_outside_untouched(&self, what: &str) {
        let names = |path: PathBuf| {
            let mut names: Vec<_> = fs::read_dir(path)
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(self.dir.path().into()), ["canary", "root"], "{what}");
        assert_eq!(names(self.dir.path().join("canary")), ["bird"], "{what}");
        let bird = self.dir.path().join("canary/bird");
        assert_eq!(fs::read(&bird).unwrap(), b"alive", "{what}");
        assert_eq!(
            (fs::metadata(&bird).unwrap().nlink(), fs::metadata(&bird).unwrap().mode() & 0o7777),
            (1, 0o644),
            "{what}"
        );
    }
}

#[test]
fn names_links_and_modes_arrive() {
    let place = Place::new();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let tar = Tar::new()
        .dir("./")
        .dir("usr/lib/")
        .symlink("lib", "usr/lib")
        .file("lib/x", b"through a link")
        .gnu_long_name(&long, b"long")
        .pax_file(&[("path", b"pax\nname".as_slice())], "ignored", b"pax")
        .file("not/named/before", b"")
        .hardlink("again", "./usr/lib/x")
        .file("twice", b"first")
        .file("twice", b"second")
        .file("file-then-dir", b"")
        .dir("file-then-dir/")
        .end();
    let stats = place.import(&tar).unwrap();
    assert_eq!(stats.entries, 12);
    let root = place.root();
    assert_eq!(fs::read(root.join("usr/lib/x")).unwrap(), b"through a link");
    assert_eq!(
        fs::metadata(root.join("again")).unwrap().ino(),
        fs::metadata(root.join("usr/lib/x")).unwrap().ino()
    );
    assert_eq!(fs::read(root.join(&long)).unwrap(), b"long");
    assert_eq!(fs::read(root.join("pax\nname")).unwrap(), b"pax");
    assert_eq!(fs::read(root.join("twice")).unwrap(), b"second");
    assert!(root.join("file-then-dir").is_dir());
    assert_eq!(fs::read_link(root.join("lib")).unwrap(), PathBuf::from("usr/lib"));
    assert_eq!(fs::metadata(root.join("not/named")).unwrap().mode() & 0o7777, 0o755);
    place.assert_outside_untouched("a good archive");
}

#[test]
fn a_directory_keeps_its_time_and_mode_although_files_follow() {
    let place = Place::new();
    let tar = Tar::new()
        .dir_with("ro", 0o555, 1_000_000)
        .dir_with("ro/in", 0o1777, 2_000_000)
        .file("ro/in/f", b"x")
        .end();
    place.import(&tar).unwrap();
    let (ro, inner) = (
        fs::metadata(place.root().join("ro")).unwrap(),
        fs::metadata(place.root().join("ro/in")).unwrap(),
    );
    assert_eq!((ro.mode() & 0o7777, ro.mtime()), (0o555, 1_000_000));
    assert_eq!((inner.mode() & 0o7777, inner.mtime()), (0o1777, 2_000_000));
    fs::set_permissions(place.root().join("ro"), PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn pax_times_before_1970_and_global_records_are_kept() {
    let place = Place::new();
    let tar = Tar::new()
        .global(&[("mtime", b"77.5"), ("comment", b"x")])
        .file("a", b"")
        .pax_file(&[("mtime", b"-1.25")], "b", b"")
        .end();
    place.import(&tar).unwrap();
    let (a, b) = (
        fs::metadata(place.root().join("a")).unwrap(),
        fs::metadata(place.root().join("b")).unwrap(),
    );
    assert_eq!((a.mtime(), a.mtime_nsec()), (77, 500_000_000));
    assert_eq!((b.mtime(), b.mtime_nsec()), (-2, 750_000_000));
}

#[test]
fn every_form_of_sparse_file_keeps_its_holes() {
    const MIB: u64 = 1 << 20;
    let size = (8 * MIB).to_string();
    let map = format!("0,4,{},4", 4 * MIB);
    let text = [format!("2\n0\n4\n{}\n4\n", 4 * MIB).into_bytes(), Vec::new()].concat();
    let mut v1 = text;
    v1.resize(512, 0);
    v1.extend_from_slice(b"headtail");
    let size = size.as_bytes();
    let middle = (4 * MIB).to_string();
    let zero: [(&str, &[u8]); 5] = [
        ("GNU.sparse.size", size),
        ("GNU.sparse.offset", b"0"),
        ("GNU.sparse.numbytes", b"4"),
        ("GNU.sparse.offset", middle.as_bytes()),
        ("GNU.sparse.numbytes", b"4"),
    ];
    let tars = [
        Tar::new().gnu_sparse("f", &[(0, 4), (4 * MIB, 4)], 8 * MIB, b"headtail").end(),
        Tar::new().pax_file(&zero, "f", b"headtail").end(),
        Tar::new()
            .pax_file(
                &[
                    ("GNU.sparse.name", b"f"),
                    ("GNU.sparse.size", size),
                    ("GNU.sparse.map", map.as_bytes()),
                ],
                "x",
                b"headtail",
            )
            .end(),
        Tar::new()
            .pax_file(
                &[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.name", b"f"),
                    ("GNU.sparse.realsize", size),
                ],
                "GNUSparseFile.0/f",
                &v1,
            )
            .end(),
    ];
    for (form, tar) in tars.iter().enumerate() {
        let place = Place::new();
        place.import(tar).unwrap();
        let file = fs::File::open(place.root().join("f")).unwrap();
        let mut bytes = vec![0; 8 << 20];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(
            (&bytes[..4], &bytes[4 << 20..(4 << 20) + 4]),
            (&b"head"[..], &b"tail"[..]),
            "form {form}"
        );
        assert_eq!(bytes.iter().filter(|b| **b != 0).count(), 8, "form {form}");
        let meta = file.metadata().unwrap();
        assert_eq!(meta.len(), 8 << 20, "form {form}");
        assert!(meta.blocks() * 512 <= 64 << 10, "form {form}: {} blocks", meta.blocks());
    }
}

#[test]
fn export_is_deterministic_and_comes_back_the_same() {
    let (a, b) = (Place::new(), Place::new());
    let long = "n".repeat(150);
    for (place, order) in [(&a, ["z", "m", "b"]), (&b, ["b", "z", "m"])] {
        for name in order {
            fs::create_dir(place.root().join(name)).unwrap();
            fs::write(place.root().join(name).join(&long), name).unwrap();
        }
        fs::hard_link(place.root().join("z").join(&long), place.root().join("a-link")).unwrap();
        std::os::unix::fs::symlink("t".repeat(300), place.root().join("sym")).unwrap();
        let sparse = fs::File::create(place.root().join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        sparse.write_all_at(b"data", 1 << 29).unwrap();
        rustix::fs::fsetxattr(&sparse, "user.a=b%\n", b"\0\n=", rustix::fs::XattrFlags::empty()).unwrap();
        drop(sparse);
        let time = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(5, 123_456_789));
        for name in ["b", "m", "z", "sparse", "."] {
            fs::File::open(place.root().join(name)).unwrap().set_times(time).unwrap();
        }
        for name in ["b", "m", "z"] {
            fs::File::options()
                .write(true)
                .open(place.root().join(name).join(&long))
                .unwrap()
                .set_times(time)
                .unwrap();
        }
        let omit = rustix::fs::Timespec { tv_sec: 9, tv_nsec: 9 };
        let times = rustix::fs::Timestamps {
            last_access: omit,
            last_modification: omit,
        };
        rustix::fs::utimensat(
            rustix::fs::CWD,
            place.root().join("sym"),
            &times,
            rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
        )
        .unwrap();
    }
    let bytes = a.export();
    assert!(bytes == b.export(), "two trees that are the same give two archives");
    assert!(bytes.len() < 1 << 20, "{} bytes: holes were written", bytes.len());
    let back = Place::new();
    back.import(&bytes).unwrap();
    assert!(bytes == back.export(), "the archive of the imported archive differs");
}

#[test]
fn content_tells_what_a_source_is() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("misleading.zip");
    let tar = Tar::new().file("a", b"content").end();
    let gzip = |bytes: &[u8]| {
        let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        to.write_all(bytes).unwrap();
        to.finish().unwrap()
    };
    let xz = |bytes: &[u8]| {
        let mut to = liblzma::write::XzEncoder::new(Vec::new(), 1);
        to.write_all(bytes).unwrap();
        to.finish().unwrap()
    };
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let (first, second) = tar.split_at(700);
    for bytes in [
        tar.clone(),
        gzip(&tar),
        xz(&tar),
        zstd(&tar),
        [gzip(first), gzip(second)].concat(),
        [xz(first), xz(second)].concat(),
        [zstd(first), zstd(second)].concat(),
    ] {
        fs::write(&path, &bytes).unwrap();
        let Ok(Source::Tar(mut stream)) = source::open(&path) else {
            panic!("{:02x?} is no archive", &bytes[..4])
        };
        assert_eq!(stream.len.unwrap().0, bytes.len() as u64);
        let place = Place::new();
        tar_in::import(&mut stream.reader, &open_root(&place.root()).unwrap(), &mut |_, _| {}).unwrap();
        assert_eq!(fs::read(place.root().join("a")).unwrap(), b"content");
        assert_eq!(stream.consumed.load(std::sync::atomic::Ordering::Relaxed), bytes.len() as u64);
    }
    fs::write(&path, vec![0; 4096]).unwrap();
    assert!(matches!(source::open(&path), Ok(Source::Raw(disk)) if disk.size.0 == 4096));
    assert!(matches!(source::open(dir.path()), Ok(Source::Dir(_))));
    for (bytes, want) in [
        (b"QFI\xfb and more".to_vec(), "qcow2"),
        (b"BZh9".to_vec(), "bzip2"),
        (vec![1; 1000], "not a multiple of 512"),
        (Vec::new(), "empty"),
        (gzip(&[0; 2048]), "not a tar archive"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = source::open(&path).err().expect("refused").to_string();
        assert!(error.contains(want) && error.contains("misleading.zip"), "{error}");
    }
}

#[test]
fn what_is_called_an_archive_is_never_a_raw_disk() {
    let dir = TempDir::new().unwrap();
    for name in ["a.tar", "a.tar.gz", "A.TGZ", "a.tar.zst", "a.txz"] {
        let path = dir.path().join(name);
        fs::write(&path, [7; 4096]).unwrap();
        let error = source::open(&path).err().expect("refused").to_string();
        assert!(error.contains("its name says archive"), "{name}: {error}");
        fs::write(&path, [0; 10240]).unwrap();
        assert!(matches!(source::open(&path), Ok(Source::Tar(_))), "{name}: an archive of nothing");
    }
}

#[test]
fn a_damaged_stream_is_an_error_that_names_the_file() {
    let dir = TempDir::new().unwrap();
    let noise: Vec<u8> = (0..400_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let tar = Tar::new().file("noise", &noise).end();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&tar).unwrap();
    let mut zstd = zstd::Encoder::new(Vec::new(), 1).unwrap();
    zstd.include_checksum(true).unwrap();
    zstd.write_all(&tar).unwrap();
    for (kind, whole) in [
        ("gzip", gzip.finish().unwrap()),
        ("xz", xz.finish().unwrap()),
        ("zstd", zstd.finish().unwrap()),
    ] {
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x10;
        let cuts = [whole.len() - 1, whole.len() / 2, 600].map(|len| whole[..len].to_vec());
        for bytes in cuts.into_iter().chain([flipped]) {
            let path = dir.path().join("bad");
            fs::write(&path, &bytes).unwrap();
            let place = Place::new();
            let text = match source::open(&path) {
                Ok(Source::Tar(stream)) => {
                    let error = tar_in::import(stream.reader, &open_root(&place.root()).unwrap(), &mut |_, _| {}).unwrap_err();
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    format!("{error}: {}", cause.unwrap_or_default())
                }
                Ok(_) => panic!("{kind} of {} bytes is taken for something else", bytes.len()),
                Err(SourceError::Io { path, source }) => format!("{}: {source}", path.display()),
                Err(other) => other.to_string(),
            };
            assert!(text.contains("/bad"), "{kind}, {} of {} bytes: {text}", bytes.len(), whole.len());
        }
    }
}

#[test]
fn a_raw_disk_comes_out_sparse_and_whole() {
    use crate::units::Bytes;
    struct Memory(Vec<u8>);
    impl crate::blockio::BlockDevice for Memory {
        fn size(&self) -> Bytes {
            Bytes(self.0.len() as u64)
        }
        fn read_only(&self) -> bool {
            true
        }
        fn read(&self, at: Bytes, buf: &mut [u8]) -> std::io::Result<()> {
            buf.copy_from_slice(&self.0[at.0 as usize..at.0 as usize + buf.len()]);
            Ok(())
        }
        fn write(&self, _: Bytes, _: &[u8]) -> std::io::Result<()> {
            Err(std::io::ErrorKind::PermissionDenied.into())
        }
        fn zero(&self, _: Bytes, _: Bytes) -> std::io::Result<()> {
            Err(std::io::ErrorKind::PermissionDenied.into())
        }
        fn flush(&self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut disk = vec![0; (4 << 20) + 512];
    for at in [0, 4096, 8191, 40_960, (1 << 20) - 1, 1 << 20, (3 << 20) + 5, (4 << 20) + 511] {
        disk[at] = 7;
    }
    let file = tempfile::tempfile().unwrap();
    let ranges = [Bytes(0)..Bytes(2 << 20), Bytes(3 << 20)..Bytes((4 << 20) + 512)];
    super::raw_out::export(&Memory(disk.clone()), ranges.into_iter(), &file, &mut |_| {}).unwrap();
    let mut back = vec![1; disk.len()];
    file.read_exact_at(&mut back, 0).unwrap();
    assert!(back == disk);
    assert_eq!(file.metadata().unwrap().len(), disk.len() as u64);
    assert!(file.metadata().unwrap().blocks() * 512 < 128 << 10);
}
