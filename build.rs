//! Compiles `proto/limn.proto` with protox, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/limn.proto");
    let files = protox::Compiler::new(["proto"])?
        .include_source_info(true)
        .include_imports(true)
        .open_file("limn.proto")?
        .file_descriptor_set();
    let mut config = prost_build::Config::new();
    config.btree_map(["."]);
    config.compile_fds(files.clone())?;
    let mut json = pbjson_build::Builder::new();
    for file in &files.file {
        json.register_file_descriptor(file.clone());
    }
    // The fields' own names, as the documentation of the topics gives them.
    json.preserve_proto_field_names()
        .btree_map(["."])
        .build(&[".limn.v1"])?;
    Ok(())
}
