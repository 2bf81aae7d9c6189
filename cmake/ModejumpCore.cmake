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
find_program(CARGO cargo PATHS "$ENV{HOME}/.cargo/bin")
if(NOT CARGO)
  message(FATAL_ERROR "cargo was not found: install Rust (https://rustup.rs, or a package of the system), or set -DCARGO= to its path")
endif()
# cargo has a folder of its own for a target that it is asked for
set(CORE_PLATFORM "$ENV{CARGO_BUILD_TARGET}" CACHE STRING "Target of cargo, as x86_64-unknown-linux-gnu; none for that of this machine")
set(CORE_BUILT "${CORE_TARGET}/release")
if(CORE_PLATFORM)
  set(CORE_BUILT "${CORE_TARGET}/${CORE_PLATFORM}/release")
  set(FOR_PLATFORM --target "${CORE_PLATFORM}")
endif()
set(CORE "${CORE_BUILT}/libmodejump.a")
set(CORE_SHARED "${CORE_BUILT}/libmodejump.so")
# Cargo tracks changes itself, so it runs at every build, in the folder of the sources, where its configuration may be. What is installed needs no
# line tables, which are four fifths of its size.
add_custom_target(modejump-core ALL
  COMMAND "${CARGO}" rustc --release --locked --no-default-features --features cuda --lib --crate-type staticlib,cdylib
    --manifest-path "${CORE_SOURCE}/Cargo.toml" --target-dir "${CORE_TARGET}" --config profile.release.debug=false ${FOR_PLATFORM}
  WORKING_DIRECTORY "${CORE_SOURCE}"
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
