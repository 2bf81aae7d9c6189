// The program around the kernels, included after their source: reads one launch from a file, runs it, writes the memory back.
//
//   launcher LAUNCH RESULT
//
// LAUNCH: "name grid block shared seed together buffers bytes\n", then per buffer its address and size (u64) and contents, then the
// kernel's argument of so many bytes. Words of it that are the address of a buffer become pointers. RESULT: the contents of the
// buffers, one after the other.
int main(int argc, char** argv) {
  if (argc != 3) fibres::fault("usage: launcher LAUNCH RESULT");
  std::FILE* in = std::fopen(argv[1], "rb");
  if (!in) fibres::fault(std::string("cannot read ") + argv[1]);
  const auto read = [&](void* to, size_t bytes) {
    if (bytes && std::fread(to, 1, bytes, in) != bytes) fibres::fault("the launch is cut short");
  };
  char name[128];
  unsigned grid, block, shared, seed, together, n_buffers, n_bytes;
  if (std::fscanf(in, "%127s %u %u %u %u %u %u %u", name, &grid, &block, &shared, &seed, &together, &n_buffers, &n_bytes) != 8)
    fibres::fault("the launch has no first line");
  std::fgetc(in);
  struct Memory { uint64_t address, bytes; char* data; };
  std::vector<Memory> memories(n_buffers);
  for (Memory& memory : memories) {
    read(&memory.address, 8);
    read(&memory.bytes, 8);
    memory.data = static_cast<char*>(std::malloc(std::max<uint64_t>(memory.bytes, 1)));
    read(memory.data, memory.bytes);
  }
  std::vector<uint64_t> argument((n_bytes + 7) / 8);
  read(argument.data(), n_bytes);
  std::fclose(in);
  for (uint64_t& word : argument)
    for (const Memory& memory : memories)
      if (word == memory.address) { word = reinterpret_cast<uint64_t>(memory.data); break; }
  const auto kernel = fibres::kernels().find(name);
  if (kernel == fibres::kernels().end()) fibres::fault(std::string("no kernel ") + name);
  if (kernel->second.first != n_bytes)
    fibres::fault(std::string(name) + " takes " + std::to_string(kernel->second.first) + " bytes, given " + std::to_string(n_bytes));
  fibres::launch(grid, block, shared, seed, together, [&] { kernel->second.second(argument.data()); });
  std::FILE* out = std::fopen(argv[2], "wb");
  if (!out) fibres::fault(std::string("cannot write ") + argv[2]);
  for (const Memory& memory : memories) std::fwrite(memory.data, 1, memory.bytes, out);
  if (std::fclose(out) != 0) fibres::fault(std::string("cannot write ") + argv[2]);
  for (Memory& memory : memories) std::free(memory.data);
  return 0;
}
