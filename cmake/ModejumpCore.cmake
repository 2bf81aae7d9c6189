# The Rust core, with CUDA kernels and without the command-line tool: defines the target `modejump-core`, built by cargo, its static library
# ${CORE} and its shared library ${CORE_SHARED}.

set(CMAKE_CXX_STANDARD 17)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

get_filename_component(CORE_SOURCE "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
# not the folder of the program's build, where a change of features would rebuild the library that others link
set(CORE_TARGET "${CORE_SOURCE}/target/core" CACHE PATH "Where cargo builds")
find_program(CARGO cargo HINTS "$ENV{HOME}/.cargo/bin" REQUIRED)
set(CORE "${CORE_TARGET}/release/libmodejump.a")
set(CORE_SHARED "${CORE_TARGET}/release/libmodejump.so")
# Cargo tracks changes itself, so it runs at every build.
add_custom_target(modejump-core ALL
  COMMAND "${CARGO}" rustc --release --locked --no-default-features --features cuda --lib --crate-type staticlib,cdylib
    --manifest-path "${CORE_SOURCE}/Cargo.toml" --target-dir "${CORE_TARGET}"
  BYPRODUCTS "${CORE}" "${CORE_SHARED}"
  COMMENT "Building the modejump core"
  VERBATIM)

# Links the core into a plugin and hides the core's symbols: another library with its own modejump may be loaded in the same
# process.
function(link_core plugin)
  add_dependencies(${plugin} modejump-core)
  target_include_directories(${plugin} PRIVATE "${CORE_SOURCE}/include")
  target_compile_options(${plugin} PRIVATE -Wall -Wextra)
  target_link_libraries(${plugin} PRIVATE "${CORE}" pthread dl m)
  target_link_options(${plugin} PRIVATE -Wl,--exclude-libs,ALL -Wl,--gc-sections)
  set_target_properties(${plugin} PROPERTIES LINK_DEPENDS "${CORE}")
endfunction()
