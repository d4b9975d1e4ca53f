# CTest: include this before include(CTest), then build and run `ctest -T memcheck`.
# CTest passes Valgrind's options, which leakscope takes, and reads its log files.
find_program(LEAKSCOPE leakscope REQUIRED)
set(MEMORYCHECK_COMMAND "${LEAKSCOPE}")
set(MEMORYCHECK_TYPE Valgrind)
# Instead of CTest's own options: keep a recording of each test too, for `leakscope gate leaks/*.leak`.
file(MAKE_DIRECTORY "${CMAKE_BINARY_DIR}/leaks")
set(MEMORYCHECK_COMMAND_OPTIONS "--quiet --leak-check=full --num-callers=50 -o ${CMAKE_BINARY_DIR}/leaks/%p-%n.leak")
