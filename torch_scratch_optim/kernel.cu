// A rule over many tensors, on a CUDA device. What the rule writes stands above this text:
// COLUMNS(X), a line X(index, type, written) for each tensor of a row; NUMBERS, how many numbers
// the rule is given; update(element of each column…, numbers), the rule itself; and, where steps
// are counted here, numbers_at(step, options, numbers), what follows from a step count.

// Rows by value, as parameters of the launch: no copy to the device, nothing to be kept alive.
template <int WORDS> struct Table {
  int64_t rows;
  int64_t numbers;    // address of the rows' numbers; 0: they are among the words
  int64_t stride;     // from one row's numbers to the next's: 0 if all have the same
  int64_t found_inf;  // address of a float: 1 if a gradient is infinite, and nothing is to move
  // The first chunk of each row, the elements of each row, the addresses of its tensors column
  // after column, and the numbers.
  int64_t words[WORDS];
};

template <typename T> struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) Four { T at[4]; };

template <typename T> INLINE bool is_aligned(const T* address) {
  return (int64_t)address % alignof(Four<T>) == 0;
}

INLINE bool is_infinite(int64_t found_inf) { return found_inf && *(const float*)found_inf == 1; }

// A block moves one chunk of a row.
template <int WORDS> INLINE void move(const Table<WORDS>& table) {
  if (is_infinite(table.found_inf)) return;
  const int64_t rows = table.rows, block = blockIdx.x;
  int64_t row = 0, beyond = rows;  // the last row whose first chunk is not after this one
  while (beyond - row > 1) {
    const int64_t middle = (row + beyond) / 2;
    if (table.words[middle] <= block) row = middle; else beyond = middle;
  }
  const int64_t begin = (block - table.words[row]) * CHUNK;
  const int64_t size = table.words[rows + row];
  const int64_t end = size < begin + CHUNK ? size : begin + CHUNK;
  const int64_t* pointers = table.words + 2 * rows;
  const double* source = table.numbers ? (const double*)table.numbers
                                       : (const double*)(pointers + COLUMN_COUNT * rows);
  double numbers[NUMBERS + 1];
  for (int k = 0; k < NUMBERS; ++k) numbers[k] = source[row * table.stride + k];
  bool aligned = true;
#define ELEMENT(index, type, written) c##index,
#define POINTER(index, type, written) type* column##index = (type*)pointers[index * rows + row] + begin; \
  aligned = aligned && is_aligned(column##index);
#define LOAD_FOUR(index, type, written) Four<type> four##index = *(const Four<type>*)(column##index + i);
#define LOAD_OF_FOUR(index, type, written) auto c##index = load(four##index.at[k]);
#define STORE_OF_FOUR(index, type, written) if (written) four##index.at[k] = to_##type(c##index);
#define STORE_FOUR(index, type, written) if (written) *(Four<type>*)(column##index + i) = four##index;
#define LOAD(index, type, written) auto c##index = load(column##index[i]);
#define STORE(index, type, written) if (written) column##index[i] = to_##type(c##index);
  COLUMNS(POINTER)
  const int length = end - begin, whole = aligned ? length / 4 * 4 : 0;
  for (int i = 4 * threadIdx.x; i < whole; i += 4 * blockDim.x) {
    COLUMNS(LOAD_FOUR)
    for (int k = 0; k < 4; ++k) {
      COLUMNS(LOAD_OF_FOUR)
      update(COLUMNS(ELEMENT) numbers);
      COLUMNS(STORE_OF_FOUR)
    }
    COLUMNS(STORE_FOUR)
  }
  for (int i = whole + threadIdx.x; i < length; i += blockDim.x) {
    COLUMNS(LOAD)
    update(COLUMNS(ELEMENT) numbers);
    COLUMNS(STORE)
  }
}

#define ENTRY extern "C" __global__ void __launch_bounds__(THREADS)
ENTRY move_few(const __grid_constant__ Table<FEW_WORDS> table) { move(table); }
#ifdef MANY_WORDS
ENTRY move_many(const __grid_constant__ Table<MANY_WORDS> table) { move(table); }
#endif

#ifdef OPTIONS
// A thread counts the step of one row and works out its numbers. The words: the address of each
// row's step, if there are steps, and the options.
ENTRY count(const __grid_constant__ Table<FEW_WORDS> table) {
  const int64_t row = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= table.rows || is_infinite(table.found_inf)) return;
  const int64_t* options = table.words + (COUNTS ? table.rows : 0);
  double step = 0;
  if (COUNTS) step = *(float*)table.words[row] += 1;
  numbers_at(step, options, (double*)table.numbers + row * NUMBERS);
}
#endif
