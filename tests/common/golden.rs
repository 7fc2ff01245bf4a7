//! Comparison with a pinned file; `BLOCKBT_BLESS=1` writes it anew.

use std::path::Path;

/// Panics where `text` is not what `tests/golden/<file>` holds.
pub fn check(file: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    if std::env::var_os("BLOCKBT_BLESS").is_some_and(|bless| bless == "1") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        return std::fs::write(&path, text).unwrap();
    }
    let want = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        want == text,
        "{} is not what is printed now (BLOCKBT_BLESS=1 takes it over):\n{text}",
        path.display()
    );
}
